"""The bound's terms against closed forms, an independent computation, and the entropy of a known distribution."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

from models import philox
from models.cli.commands import main
from models.config import DiffusionConfig, ModelConfig
from models.diffusion import GaussianDiffusion
from models.likelihood import (
    Bound,
    discretised_log_likelihood,
    prior_divergence,
    rate_distortion,
    variational_bound,
)
from models.likelihood_report import summary
from models.networks.table import build_model
from models.snapshot import write_snapshot
from tests.support.reference.mixture import DEVIATION, MEANS, WEIGHTS, MixtureModel, draw

SHORT = {"num_timesteps": 40, "beta_start": 0.002, "beta_end": 0.3}


def _to_levels(x):
    return (x * 127.5 + 127.5).round().clip(0, 255) / 127.5 - 1


def _smooth(x, t):
    return 0.7 * x + 0.2 * torch.sin(2 * x + t.view(-1, 1, 1, 1))


@pytest.mark.parametrize("variance", ["fixedlarge", "fixedsmall"])
@pytest.mark.parametrize("clip", [True, False])
def test_terms_equal_a_direct_numpy_computation(variance, clip):
    diffusion = GaussianDiffusion(DiffusionConfig(variance=variance, **SHORT))
    x_0 = _to_levels(torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1)
    bound = variational_bound(_smooth, diffusion, x_0, torch.tensor([4, 0, 9]), 2, clip)
    beta = np.linspace(0.002, 0.3, 40)
    alpha_bar = np.cumprod(1 - beta)
    x = x_0.numpy()
    for t in range(40):
        noise = philox.normal(2, "likelihood/noise", torch.tensor([4, 0, 9]), (1, 4, 4), t, torch.float64).numpy()
        x_t = alpha_bar[t] ** 0.5 * x + (1 - alpha_bar[t]) ** 0.5 * noise
        eps = _smooth(torch.from_numpy(x_t), torch.full((3,), t)).numpy()
        estimate = (x_t - (1 - alpha_bar[t]) ** 0.5 * eps) / alpha_bar[t] ** 0.5
        estimate = estimate.clip(-1, 1) if clip else estimate
        np.testing.assert_allclose(bound.squared_error[:, t], ((x - estimate) ** 2).mean((1, 2, 3)), rtol=1e-9)
        if t == 0:
            deviation = (beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])) ** 0.5
            expected = -_log_probability(x, estimate, deviation).mean((1, 2, 3)) / np.log(2)
        else:
            before = alpha_bar[t - 1]
            true_variance = beta[t] * (1 - before) / (1 - alpha_bar[t])
            model_variance = beta[t] if variance == "fixedlarge" else true_variance
            means = [
                before**0.5 * beta[t] / (1 - alpha_bar[t]) * start
                + (1 - beta[t]) ** 0.5 * (1 - before) / (1 - alpha_bar[t]) * x_t
                for start in (x, estimate)
            ]
            kl = np.log(model_variance / true_variance) / 2 - 0.5
            kl = kl + (true_variance + (means[0] - means[1]) ** 2) / (2 * model_variance)
            expected = kl.mean((1, 2, 3)) / np.log(2)
        np.testing.assert_allclose(bound.terms[:, t], expected, rtol=1e-7, atol=1e-12)
    square = (alpha_bar[-1] * x**2).mean((1, 2, 3))
    expected_prior = 0.5 * (square + 1 - alpha_bar[-1] - 1 - np.log(1 - alpha_bar[-1])) / np.log(2)
    np.testing.assert_allclose(bound.prior, expected_prior, rtol=1e-9)
    np.testing.assert_allclose(bound.total, bound.prior + bound.terms.sum(1), rtol=1e-12)


def _log_probability(x, mean, deviation):
    """The discretised Gaussian, level by level, with the tanh approximation."""

    def cdf(z):
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    result = np.empty_like(x)
    for place in np.ndindex(x.shape):
        above = 1.0 if x[place] > 0.999 else cdf((x[place] + 1 / 255 - mean[place]) / deviation)
        below = 0.0 if x[place] < -0.999 else cdf((x[place] - 1 / 255 - mean[place]) / deviation)
        result[place] = np.log(max(above - below, 1e-12))
    return result


@pytest.mark.parametrize("variance", ["fixedlarge", "fixedsmall"])
def test_terms_have_their_analytic_mean_for_gaussian_data(variance):
    """For x_0 ~ N(0, s^2) the best eps is linear and every term's expectation has a closed form."""
    deviation, diffusion = 0.4, GaussianDiffusion(DiffusionConfig(variance=variance, **SHORT))
    alpha_bar = diffusion.tables.alphas_cumprod.numpy()

    def exact(x, t):
        at = diffusion.tables.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - at).sqrt() * x / (at * deviation**2 + 1 - at)

    x_0 = deviation * philox.normal(0, "data", torch.arange(400), (1, 10, 10), dtype=torch.float64)
    bound = variational_bound(exact, diffusion, x_0, torch.arange(400), 0, clip_x_0=False)
    remaining = deviation**2 * (1 - alpha_bar) / (alpha_bar * deviation**2 + 1 - alpha_bar)
    num = x_0.numel()
    # Squares of Gaussians: standard error of their mean is sqrt(2 / num) of it.
    np.testing.assert_allclose(bound.squared_error.mean(0), remaining, rtol=5 * (2 / num) ** 0.5)
    beta, before = diffusion.tables.betas.numpy()[1:], alpha_bar[:-1]
    true_variance = beta * (1 - before) / (1 - alpha_bar[1:])
    model_variance = beta if variance == "fixedlarge" else true_variance
    difference = before * beta**2 / (1 - alpha_bar[1:]) ** 2 * remaining[1:]
    ratio = true_variance / model_variance
    expected = 0.5 * (ratio - 1 - np.log(ratio) + difference / model_variance) / np.log(2)
    np.testing.assert_allclose(bound.terms[:, 1:].mean(0), expected, rtol=5 * (2 / num) ** 0.5)
    expected_prior = -0.5 * (np.log1p(-alpha_bar[-1]) + alpha_bar[-1] * (1 - deviation**2)) / np.log(2)
    assert float(bound.prior.mean()) == pytest.approx(expected_prior, rel=0.02)


def test_the_bound_of_the_exact_model_is_the_entropy_of_the_mixture_and_the_decoders_slack():
    num = 5000
    diffusion = GaussianDiffusion(DiffusionConfig(variance="fixedlarge"))
    points = draw(num, 3)
    x_0 = torch.from_numpy(_to_levels(points)).reshape(-1, 2, 1, 1)
    model = MixtureModel(diffusion.tables.alphas_cumprod.numpy())
    bound = variational_bound(model, diffusion, x_0, torch.arange(num), 0)
    densities = [
        weight * stats.multivariate_normal(mean, DEVIATION**2).pdf(points)
        for weight, mean in zip(WEIGHTS, MEANS, strict=True)
    ]
    # Bits per dimension of a point on the 256 levels, 2 / 255 apart.
    surprise = -np.log2(sum(densities)) / 2 + np.log2(127.5)
    gap = bound.total.numpy() - surprise
    # The reverse steps lose next to nothing; the decoder's variance is smaller than the error it stands for.
    ratio = (
        1 / (1 / DEVIATION**2 + 1 / float(diffusion.tables.betas[0])) / float(diffusion.tables.posterior_variance[1])
    )
    slack = 0.5 * (ratio - 1 - np.log(ratio)) / np.log(2)
    standard_error = gap.std() / num**0.5
    assert standard_error < 0.025
    assert gap.mean() == pytest.approx(slack, abs=4 * standard_error)
    assert gap.mean() > 4 * standard_error
    # A shorter chain has a looser bound.
    short = variational_bound(model, diffusion.respaced(range(9, 1000, 110)), x_0[:500], torch.arange(500), 0)
    assert short.total.mean() > bound.total.mean() + 0.5


def test_the_decoder_is_a_distribution_over_the_256_levels():
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, deviation in [(0.3, 0.005), (-1.0, 0.05), (0.99, 0.4), (-0.2, 2.0)]:
        log_probability = discretised_log_likelihood(levels, torch.full_like(levels, mean), np.log(deviation))
        assert float(log_probability.exp().sum()) == pytest.approx(1.0, abs=1e-8)
        edges = np.concatenate([[-np.inf], levels[1:].numpy() - 1 / 255, [np.inf]])
        exact = np.diff(stats.norm.cdf(edges, mean, deviation))
        np.testing.assert_allclose(log_probability.exp(), exact, atol=1e-3)
    far = discretised_log_likelihood(levels[:1] + 1.0, levels[:1], np.log(1e-4))
    assert float(far) == pytest.approx(np.log(1e-12))


def test_rate_counts_what_comes_after_a_step_and_distortion_is_in_levels():
    bound = Bound(
        torch.tensor([1.0, 3.0]),
        torch.tensor([[10.0, 20.0, 40.0], [30.0, 40.0, 80.0]]),
        torch.tensor([[0.01, 0.04, 0.25], [0.03, 0.12, 0.75]]),
    )
    assert bound.rate.tolist() == [[61.0, 41.0, 1.0], [123.0, 83.0, 3.0]]
    np.testing.assert_allclose(bound.distortion, 127.5 * np.sqrt([0.02, 0.08, 0.5]), rtol=1e-6)
    curve = rate_distortion([bound])
    assert [point["position"] for point in curve] == [2, 1, 0]
    assert [point["rate_bits_per_dim"] for point in curve] == [2.0, 62.0, 92.0]
    report = summary([bound])
    assert report["rate"] + report["distortion_bits"] == report["bits_per_dim"] == 112.0


def test_an_images_bound_does_not_depend_on_its_batch():
    diffusion = GaussianDiffusion(DiffusionConfig(**SHORT))
    x_0 = _to_levels(torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    whole = variational_bound(_smooth, diffusion, x_0, torch.arange(4), 0)
    alone = variational_bound(_smooth, diffusion, x_0[2:3], torch.tensor([2]), 0)
    torch.testing.assert_close(whole.terms[2:3], alone.terms)
    assert prior_divergence(diffusion, x_0).dtype == whole.total.dtype == torch.float64


@pytest.mark.parametrize(
    ("x_0", "message"),
    [
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), r"x_0 holds torch.uint8"),
        (torch.zeros(2, 1, 2, 2), "1 indices for 2"),
    ],
)
def test_images_that_would_be_measured_wrongly_are_refused(x_0, message):
    with pytest.raises(ValueError, match=message):
        variational_bound(_smooth, GaussianDiffusion(DiffusionConfig(**SHORT)), x_0, torch.arange(1), 0)


def test_a_bound_that_is_not_finite_is_not_reported():
    diffusion = GaussianDiffusion(DiffusionConfig(**SHORT))
    bound = variational_bound(lambda x, t: x * float("nan"), diffusion, torch.zeros(1, 1, 2, 2), torch.arange(1), 0)
    with pytest.raises(ValueError, match="the network has diverged"):
        summary([bound])


def test_the_bound_of_a_chain_of_one_step_is_its_prior_and_decoder():
    process = GaussianDiffusion(DiffusionConfig(**SHORT)).respaced([39])
    bound = variational_bound(_smooth, process, torch.zeros(1, 1, 1, 1), torch.arange(1), 0)
    assert bound.terms.shape == (1, 1)
    assert float(bound.total) == float(bound.prior + bound.terms[0, 0]) > 0


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    config = ModelConfig(image_size=4, base_channels=32, channel_multipliers=(1,), attention_resolutions=())
    path = tmp_path_factory.mktemp("likelihood") / "snapshot"
    write_snapshot(path, build_model(config).state_dict(), config, DiffusionConfig(num_timesteps=8), {})
    return path


def test_the_command_reports_the_bound_of_a_file(snapshot, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    arguments = ["likelihood", str(snapshot), str(tmp_path / "images.npz"), "--device", "cpu"]
    assert main([*arguments, "--batch-size", "2", "--output", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    full = json.loads((tmp_path / "out" / "likelihood.json").read_text())
    assert report["num_images"] == 5
    assert report["bits_per_dim"] == pytest.approx(
        full["prior"] + sum(term["bits_per_dim"] for term in full["terms"]), rel=1e-9
    )
    assert [point["timestep"] for point in full["rate_distortion"]] == list(range(7, -1, -1))
    assert (tmp_path / "out" / "rate_distortion.png").stat().st_size > 1000
    assert main([*arguments, "--num-images", "3"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert few["num_images"] == 3
    x_0 = torch.from_numpy(images[:3]).permute(0, 3, 1, 2).float() / 127.5 - 1
    diffusion = GaussianDiffusion(DiffusionConfig(num_timesteps=8))
    expected = variational_bound(lambda x, t: torch.zeros_like(x), diffusion, x_0, torch.arange(3), 0)
    # A new network predicts zero noise, so its bound is that of the constant zero.
    assert few["bits_per_dim"] == pytest.approx(float(expected.total.mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "/nowhere does not exist"),
        (["DATA", "--num-images", "0"], "num_images is 0"),
        (["DATA", "--num-sampling-steps", "9"], "must be in [1, 8]"),
    ],
)
def test_mistakes_are_named(snapshot, tmp_path, capsys, arguments, message):
    np.save(tmp_path / "data.npy", np.zeros((1, 4, 4, 3), np.uint8))
    arguments = [str(tmp_path / "data.npy") if part == "DATA" else part for part in arguments]
    assert main(["likelihood", str(snapshot), *arguments]) == 2
    assert message in capsys.readouterr().err
