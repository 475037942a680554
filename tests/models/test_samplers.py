"""Samplers against an analytic target, against diffusers, and against their own promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import philox
from models.config import DiffusionConfig, ModelConfig
from models.diffusion import GaussianDiffusion
from models.networks.table import build_model, eval_mode
from models.samplers import SAMPLERS, choose_process, denoise_from, log_snr_timesteps, sample, uniform_timesteps
from tests.support.reference.mixture import SHAPE, MixtureModel, draw, energy_distance

NUM_POINTS = 1500


def _points(diffusion, sampler, num_sampling_steps=None, **options):
    model = MixtureModel(diffusion.tables.alphas_cumprod.numpy())
    indices = torch.arange(NUM_POINTS)
    options = {"clip_x_0": False, "shape": SHAPE, **options}
    x = sample(model, diffusion, indices, 0, sampler, num_sampling_steps, **options)
    return x.double().numpy().reshape(-1, 2)


@pytest.fixture(scope="module")
def target():
    return draw(NUM_POINTS, 1)


@pytest.fixture(scope="module")
def threshold(target):
    """What two sets of true points differ by at most, of 40 pairs, with half as much again for the model's steps."""
    return 1.5 * max(energy_distance(draw(NUM_POINTS, 100 + k), target) for k in range(40))


@pytest.mark.parametrize(
    ("sampler", "num_sampling_steps", "options", "schedule", "variance"),
    [
        ("ddpm", None, {}, "linear", "fixedlarge"),
        ("ddpm", None, {}, "linear", "fixedsmall"),
        ("ddpm", 250, {}, "linear", "fixedlarge"),
        ("ddpm", 250, {}, "cosine", "fixedsmall"),
        ("ddim", None, {}, "linear", "fixedlarge"),
        ("ddim", 100, {}, "cosine", "fixedlarge"),
        ("ddim", 200, {"eta": 0.5}, "linear", "fixedlarge"),
        ("ddim", None, {"eta": 1.0}, "linear", "fixedlarge"),
        ("dpm-solver++", 20, {}, "linear", "fixedlarge"),
        ("dpm-solver++", 40, {}, "cosine", "fixedlarge"),
    ],
)
def test_every_sampler_reaches_the_mixture(target, threshold, sampler, num_sampling_steps, options, schedule, variance):
    diffusion = GaussianDiffusion(DiffusionConfig(schedule=schedule, variance=variance))
    points = _points(diffusion, sampler, num_sampling_steps, **options)
    assert energy_distance(points, target) < threshold


def test_the_threshold_tells_a_wrong_distribution(target, threshold):
    assert energy_distance(target + 0.05, target) > threshold
    assert energy_distance(_points(GaussianDiffusion(), "ddim", 5), target) > threshold


def test_ddim_with_eta_1_and_all_steps_is_ancestral_sampling():
    diffusion = GaussianDiffusion(DiffusionConfig(variance="fixedsmall"))
    # The same noise by the same streams: not only the same distribution, the same points.
    np.testing.assert_allclose(_points(diffusion, "ddim", eta=1.0), _points(diffusion, "ddpm"), atol=1e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("spacing", [None, uniform_timesteps])
def test_dpm_solver_with_20_steps_beats_ddim_with_20(schedule, spacing):
    diffusion = GaussianDiffusion(DiffusionConfig(schedule=schedule))
    exact = _points(diffusion, "ddim")
    chosen = {} if spacing is None else {"timesteps": spacing(diffusion, 20)}
    number = 20 if spacing is None else None
    errors = {s: np.square(_points(diffusion, s, number, **chosen) - exact).mean() for s in ("ddim", "dpm-solver++")}
    assert errors["dpm-solver++"] < 0.7 * errors["ddim"]


def _network_like(x, t):
    """A smooth eps that depends on both arguments, with bounded estimates of x_0."""
    return 0.8 * x + 0.3 * torch.sin(3 * x + t.view(-1, 1, 1, 1) / 300.0)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_takes_the_steps_of_diffusers(eta, monkeypatch):
    from diffusers import DDIMScheduler

    timesteps = list(range(0, 1000, 50))
    theirs = DDIMScheduler(clip_sample=True, set_alpha_to_one=True, steps_offset=0)
    theirs.set_timesteps(20)
    assert theirs.timesteps.tolist() == timesteps[::-1]
    indices = torch.arange(3)
    x = philox.normal(0, "sampler/x_T", indices, (1, 4, 4))
    for t in theirs.timesteps:
        noise = philox.normal(0, "sampler/noise", indices, (1, 4, 4), draw=int(t)) if eta else None
        eps = _network_like(x, t.expand(3))
        x = theirs.step(eps, t, x, eta=eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
    ours = sample(_network_like, GaussianDiffusion(), indices, 0, "ddim", eta=eta, timesteps=timesteps, shape=(1, 4, 4))
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_dpm_solver_takes_the_steps_of_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    diffusion = GaussianDiffusion()
    timesteps = log_snr_timesteps(diffusion, 12)
    theirs = DPMSolverMultistepScheduler(
        solver_order=2, algorithm_type="dpmsolver++", solver_type="midpoint", final_sigmas_type="zero"
    )
    theirs.set_timesteps(timesteps=timesteps[::-1])
    indices = torch.arange(3)
    x = philox.normal(0, "sampler/x_T", indices, (1, 4, 4))
    for t in theirs.timesteps:
        x = theirs.step(_network_like(x, t.expand(3)), t, x).prev_sample
    options = {"timesteps": timesteps, "shape": (1, 4, 4), "clip_x_0": False}
    ours = sample(_network_like, diffusion, indices, 0, "dpm-solver++", **options)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)


def test_ancestral_sampling_is_algorithm_2():
    diffusion = GaussianDiffusion(DiffusionConfig(num_timesteps=30, beta_start=0.01, beta_end=0.3))
    indices = torch.tensor([5, 2])
    x = philox.normal(3, "sampler/x_T", indices, (1, 2, 2))
    for t in reversed(range(30)):
        noise = philox.normal(3, "sampler/noise", indices, (1, 2, 2), draw=t)
        x = diffusion.p_sample(_network_like, x, torch.full((2,), t), noise)
    ours = sample(_network_like, diffusion, indices, 3, shape=(1, 2, 2))
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
    assert ours.abs().max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler):
    torch.manual_seed(0)
    config = ModelConfig(image_size=8, base_channels=32, channel_multipliers=(1,), attention_resolutions=())
    model = build_model(config)
    torch.nn.init.normal_(model.conv_out.weight, std=0.05)
    diffusion = GaussianDiffusion()
    whole = sample(model, diffusion, torch.tensor([7, 3, 9, 2]), 5, sampler, 10, eta=0.5)
    alone = sample(model, diffusion, torch.tensor([9]), 5, sampler, 10, eta=0.5)
    torch.testing.assert_close(whole[2:3], alone, rtol=0, atol=1e-4)
    assert (whole[2] - whole[0]).abs().max() > 0.1
    other_seed = sample(model, diffusion, torch.tensor([9]), 6, sampler, 10, eta=0.5)
    assert (other_seed - alone).abs().max() > 0.1


@given(st.integers(2, 200), st.data(), st.sampled_from(["linear", "cosine"]))
@settings(max_examples=60, deadline=None)
def test_spacings_choose_as_many_distinct_timesteps_as_asked(num_timesteps, data, schedule):
    diffusion = GaussianDiffusion(DiffusionConfig(num_timesteps=num_timesteps, schedule=schedule))
    num_sampling_steps = data.draw(st.integers(1, num_timesteps))
    for spacing in (uniform_timesteps, log_snr_timesteps):
        chosen = spacing(diffusion, num_sampling_steps)
        assert len(chosen) == num_sampling_steps
        assert chosen == sorted(set(chosen))
        assert chosen[-1] == num_timesteps - 1
        assert chosen[0] == 0 or num_sampling_steps == 1


@given(st.lists(st.integers(0, 99), min_size=1, max_size=12, unique=True).map(sorted), st.sampled_from(list(SAMPLERS)))
@settings(max_examples=60, deadline=None)
def test_every_sampler_works_on_any_timesteps(timesteps, sampler):
    diffusion = GaussianDiffusion(DiffusionConfig(num_timesteps=100, schedule="cosine"))
    seen = []
    model_timesteps = []

    def model(x, t):
        model_timesteps.append(int(t[0]))
        return _network_like(x, t)

    x = sample(
        model, diffusion, torch.arange(2), 0, sampler, eta=0.3, progress=lambda *a: seen.append(a),
        timesteps=timesteps, shape=(1, 2, 2),
    )  # fmt: skip
    assert torch.isfinite(x).all()
    assert x.abs().max() <= 1
    assert model_timesteps == timesteps[::-1]
    assert seen == [(k, len(timesteps)) for k in range(1, len(timesteps) + 1)]


def test_a_network_is_used_without_dropout_and_put_back():
    config = ModelConfig(
        image_size=8, base_channels=32, channel_multipliers=(1,), attention_resolutions=(), dropout=0.5
    )
    model = build_model(config).train()
    torch.nn.init.normal_(model.conv_out.weight, std=0.05)
    model.conv_in.eval()
    first = sample(model, GaussianDiffusion(), torch.arange(2), 0, num_sampling_steps=3)
    assert torch.equal(first, sample(model, GaussianDiffusion(), torch.arange(2), 0, num_sampling_steps=3))
    assert model.training
    assert model.middle_block1.dropout.training
    assert not model.conv_in.training
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert model.training


def test_num_sampling_steps_choose_among_all_timesteps_whatever_part_the_process_is():
    whole = GaussianDiffusion()
    part = whole.respaced([0, 500, 999])
    for sampler in SAMPLERS:
        expected = choose_process(whole, sampler, 5).timesteps.tolist()
        assert choose_process(part, sampler, 5).timesteps.tolist() == expected
        assert choose_process(part, sampler, 1000).num_steps == 1000
        assert choose_process(part, sampler) is part


def test_images_without_an_index_each_are_refused():
    with pytest.raises(ValueError, match="1 indices for 2 images"):
        denoise_from(_network_like, GaussianDiffusion(), torch.zeros(2, 1, 2, 2), torch.arange(1), 0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_sampling_steps", [1, 2])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5)])
def test_the_smallest_processes_and_images_give_numbers(sampler, num_sampling_steps, shape):
    diffusion = GaussianDiffusion(DiffusionConfig(num_timesteps=2, beta_start=0.1, beta_end=0.5))
    for seed in (0, 2**64 - 1):
        for index in (0, 2**62, 2**63 - 1, -1):
            x = sample(_network_like, diffusion, torch.tensor([index]), seed, sampler, num_sampling_steps, shape=shape)
            assert x.shape == (1, *shape)
            assert torch.isfinite(x).all()
    assert sample(_network_like, diffusion, torch.arange(0), 0, sampler, shape=shape).shape == (0, *shape)


def test_samples_take_part_in_training():
    x = sample(_network_like, GaussianDiffusion(), torch.arange(1), 0, num_sampling_steps=2, shape=(1, 2, 2))
    weight = torch.ones(1, requires_grad=True)
    (weight * x).sum().backward()
    assert weight.grad is not None


def test_estimates_are_clipped_by_default_and_only_then():
    def loud(x, t):
        return -5.0 * x

    options = {"num_sampling_steps": 10, "shape": (1, 2, 2)}
    assert sample(loud, GaussianDiffusion(), torch.arange(2), 0, **options).abs().max() <= 1
    assert sample(loud, GaussianDiffusion(), torch.arange(2), 0, clip_x_0=False, **options).abs().max() > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "ddpm, ddim, dpm-solver"),
        ({"num_sampling_steps": 0}, r"must be in \[1, 1000\]"),
        ({"num_sampling_steps": 1001}, r"must be in \[1, 1000\]"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"timesteps": [3, 2]}, "must increase"),
        ({"timesteps": [0.5, 2.5]}, "whole numbers"),
        ({"num_sampling_steps": 2.0}, "a whole number"),
        ({"eta": float("nan")}, "eta is nan"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample(_network_like, GaussianDiffusion(), torch.arange(1), 0, shape=(1, 2, 2), **options)
