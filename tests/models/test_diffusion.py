"""Schedules, posterior and loss against NumPy in float64, diffusers, and a slow second implementation."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import DiffusionConfig, ModelConfig
from models.diffusion import GaussianDiffusion
from models.likelihood import prior_divergence
from models.networks.table import build_model
from tests.support.reference import models_reference as reference

TINY = ModelConfig(
    image_size=8, base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(4,), dropout=0
)


def _numpy_tables(betas):
    """Every coefficient from the paper's definitions, with products and sums spelled out per timestep."""
    num = len(betas)
    alpha_bar = np.array([np.prod(1 - betas[: t + 1]) for t in range(num)])
    before = np.array([np.prod(1 - betas[:t]) for t in range(num)])
    return {
        "betas": betas,
        "alphas_cumprod": alpha_bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alpha_bar**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar) ** 0.5,
        "sqrt_recip_alphas_cumprod": 1 / alpha_bar**0.5,
        "posterior_variance": (1 - before) / (1 - alpha_bar) * betas,
        "posterior_mean_coef_x_0": before**0.5 * betas / (1 - alpha_bar),
        "posterior_mean_coef_x_t": (1 - betas) ** 0.5 * (1 - before) / (1 - alpha_bar),
    }


def _cosine_betas(num):
    def remaining(u):
        return np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2

    return np.array([min(1 - remaining((t + 1) / num) / remaining(t / num), 0.999) for t in range(num)])


@pytest.mark.parametrize(
    ("config", "betas"),
    [
        (DiffusionConfig(), np.array([1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)])),
        (DiffusionConfig(schedule="cosine"), _cosine_betas(1000)),
        (DiffusionConfig(num_timesteps=50, beta_start=0.01, beta_end=0.2), np.linspace(0.01, 0.2, 50)),
    ],
)
def test_schedules_and_posterior_match_numpy_to_1e_12(config, betas):
    diffusion = GaussianDiffusion(config)
    for name, expected in _numpy_tables(betas).items():
        table = getattr(diffusion.tables, name)
        assert table.dtype == torch.float64
        np.testing.assert_allclose(table.numpy(), expected, rtol=1e-10, atol=1e-12, err_msg=name)


def test_the_papers_process_ends_at_4e_5_and_its_prior_costs_1e_5_bits():
    diffusion = GaussianDiffusion()
    assert float(diffusion.tables.alphas_cumprod[-1]) == pytest.approx(4.0358e-5, rel=1e-4)
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert 0.5e-5 < float(prior_divergence(diffusion, images).mean()) < 2e-5


def test_variances_are_beta_or_the_posteriors_with_their_special_first_entries():
    large, small = (GaussianDiffusion(DiffusionConfig(variance=v)) for v in ("fixedlarge", "fixedsmall"))
    np.testing.assert_allclose(large.tables.model_log_variance[1:].exp(), large.tables.betas[1:], rtol=1e-12)
    np.testing.assert_allclose(
        small.tables.model_log_variance[1:].exp(), small.tables.posterior_variance[1:], rtol=1e-12
    )
    assert float(large.tables.posterior_variance[1]) == pytest.approx(5.453e-5, rel=1e-3)
    assert float(large.tables.model_log_variance[0]) == pytest.approx(np.log(5.453e-5), abs=1e-3)
    assert float(small.tables.model_log_variance[0]) == pytest.approx(np.log(1e-20))
    assert float(small.tables.decoder_log_variance[0]) == pytest.approx(np.log(5.453e-5), abs=1e-3)
    assert float(small.tables.posterior_variance[0]) == 0.0


@pytest.mark.parametrize("variance", ["fixedlarge", "fixedsmall"])
@pytest.mark.parametrize("t", [0, 1, 2, 500, 999])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_one_reverse_step_equals_that_of_diffusers(variance, t, dtype, tolerance):
    diffusion = GaussianDiffusion(DiffusionConfig(variance=variance))
    theirs = DDPMScheduler(variance_type={"fixedlarge": "fixed_large", "fixedsmall": "fixed_small"}[variance])
    if dtype == torch.float64:
        # Its float32 tables lose four digits where alpha_bar is near 1; the formulas are what we compare.
        theirs.betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        theirs.alphas = 1.0 - theirs.betas
        theirs.alphas_cumprod = theirs.alphas.cumprod(0)
        theirs.one = torch.tensor(1.0, dtype=torch.float64)
    x_t, eps = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(t), dtype=dtype)
    # The library draws its noise itself: draw the same.
    noise = torch.randn(eps.shape, generator=torch.Generator().manual_seed(7), dtype=dtype)
    expected = theirs.step(eps, t, x_t, generator=torch.Generator().manual_seed(7)).prev_sample
    ours = diffusion.p_sample(lambda x, _: eps, x_t, torch.full((2,), t), noise)
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)
    silent = diffusion.p_sample(lambda x, _: eps, x_t, torch.full((2,), t), torch.zeros_like(noise))
    assert torch.equal(ours, silent) == (t == 0)


def test_images_of_one_batch_may_be_at_different_timesteps():
    diffusion = GaussianDiffusion()
    x_0, noise = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64)
    t = torch.tensor([0, 3, 500, 999])
    x_t = diffusion.q_sample(x_0, t, noise)
    for i in range(4):
        alpha_bar = float(diffusion.tables.alphas_cumprod[t[i]])
        torch.testing.assert_close(x_t[i], alpha_bar**0.5 * x_0[i] + (1 - alpha_bar) ** 0.5 * noise[i])
    torch.testing.assert_close(diffusion.predict_x_0(x_t, t, noise), x_0, rtol=0, atol=1e-11)
    torch.testing.assert_close(diffusion.predict_noise(x_t, t, x_0), noise, rtol=0, atol=1e-11)
    assert diffusion.predict_x_0(x_t, t, noise, clip=True).abs().max() <= 1


def test_q_sample_is_what_single_forward_steps_add_up_to():
    diffusion = GaussianDiffusion(DiffusionConfig(num_timesteps=20, beta_start=0.01, beta_end=0.3))
    generator = torch.Generator().manual_seed(0)
    x = torch.full((200_000,), 0.7, dtype=torch.float64)
    for beta in diffusion.tables.betas.tolist():
        x = (1 - beta) ** 0.5 * x + beta**0.5 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    alpha_bar = float(diffusion.tables.alphas_cumprod[-1])
    # Five standard errors of the mean and of the variance.
    assert float(x.mean()) == pytest.approx(0.7 * alpha_bar**0.5, abs=5 * (1 / 200_000) ** 0.5)
    assert float(x.var()) == pytest.approx(1 - alpha_bar, rel=5 * (2 / 200_000) ** 0.5)


def test_the_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x_0) by multiplying densities on a grid, against the closed form."""
    diffusion = GaussianDiffusion(DiffusionConfig(num_timesteps=10, beta_start=0.05, beta_end=0.3))
    x_0, x_t, t = 0.4, -0.3, 6
    grid = np.linspace(-6, 6, 100_001)
    before, beta = float(diffusion.tables.alphas_cumprod[t - 1]), float(diffusion.tables.betas[t])
    log_density = -((grid - before**0.5 * x_0) ** 2) / (2 * (1 - before))
    log_density -= (x_t - (1 - beta) ** 0.5 * grid) ** 2 / (2 * beta)
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    mean = (weights * grid).sum()
    one = torch.ones(1, 1, dtype=torch.float64)
    ours, variance, log_variance = diffusion.posterior(x_0 * one, x_t * one, torch.tensor([t]))
    assert float(ours) == pytest.approx(mean, abs=1e-9)
    assert float(variance) == pytest.approx((weights * (grid - mean) ** 2).sum(), abs=1e-9)
    assert float(log_variance.exp()) == pytest.approx(float(variance))


@given(st.lists(st.integers(0, 999), min_size=1, max_size=30, unique=True).map(sorted))
@settings(max_examples=50, deadline=None)
def test_a_respaced_process_has_the_same_marginals(timesteps):
    whole = GaussianDiffusion()
    part = whole.respaced(timesteps)
    assert part.num_steps == len(timesteps)
    np.testing.assert_allclose(part.tables.alphas_cumprod, whole.tables.alphas_cumprod[timesteps], rtol=1e-10)
    assert part.model_timesteps(torch.arange(len(timesteps))).tolist() == timesteps


@pytest.mark.parametrize("timesteps", [[], [1, 1], [2, 1], [-1, 0], [999, 1000]])
def test_timesteps_that_do_not_increase_within_range_are_refused(timesteps):
    with pytest.raises(ValueError, match="timesteps"):
        GaussianDiffusion().respaced(timesteps)


def test_loss_and_its_gradient_agree_with_the_slow_reference():
    model = reference.randomise(build_model(TINY)).double()
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 3, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 400, 999])
    losses = GaussianDiffusion().loss_per_image(model, x_0, t, noise)
    losses.mean().backward()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    expected = reference.loss(x_0, t.tolist(), noise, weights, TINY)
    expected.backward()
    losses, expected = losses.detach(), expected.detach()
    assert losses.shape == (3,)
    assert float(losses.mean()) == pytest.approx(float(expected), rel=1e-11)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-8, atol=1e-11, msg=name)


def test_the_gradient_is_the_slope_of_the_loss():
    model = reference.randomise(build_model(TINY)).double()
    x_0, noise = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([10, 700])
    diffusion = GaussianDiffusion()
    diffusion.loss_per_image(model, x_0, t, noise).mean().backward()
    for parameter in (model.conv_in.weight, model.middle_attention.query.weight, model.time_embedding.dense1.bias):
        slopes = []
        for change in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[3] += change
                slopes.append(float(diffusion.loss_per_image(model, x_0, t, noise).mean()) / (2 * change))
                parameter.view(-1)[3] -= change
        assert float(parameter.grad.view(-1)[3]) == pytest.approx(sum(slopes), rel=1e-4, abs=1e-9)


def test_losses_of_a_batch_are_those_of_its_images():
    model = reference.randomise(build_model(TINY)).double()
    x_0, noise = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    t = torch.tensor([1, 2, 3, 4])
    diffusion = GaussianDiffusion()
    whole = diffusion.loss_per_image(model, x_0, t, noise)
    parts = [diffusion.loss_per_image(model, x_0[i : i + 1], t[i : i + 1], noise[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)


def test_losses_stay_float32_under_autocast_and_with_bfloat16_weights():
    model = reference.randomise(build_model(TINY))
    x_0, noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([1, 200, 300, 999])
    diffusion = GaussianDiffusion()
    expected = diffusion.loss_per_image(model, x_0, t, noise)
    with torch.autocast("cpu", torch.bfloat16):
        automatic = diffusion.loss_per_image(model, x_0, t, noise)
    low = diffusion.loss_per_image(model.bfloat16(), x_0, t, noise)
    for losses in (automatic, low):
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, expected, rtol=0.1, atol=0)


def test_the_first_loss_of_a_new_network_is_the_mean_square_of_the_noise():
    x_0, noise = torch.randn(2, 4, 3, 8, 8)
    losses = GaussianDiffusion().loss_per_image(build_model(TINY), x_0, torch.tensor([0, 1, 2, 999]), noise)
    torch.testing.assert_close(losses, noise.square().mean((1, 2, 3)))
