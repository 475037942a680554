"""Progressive generation, interpolation and sets from one latent, on networks whose answers are known."""

import pytest
import torch

from models import philox
from models.config import DiffusionConfig
from models.diffusion import GaussianDiffusion
from models.generation import from_latent, interpolate, progressive, variations
from models.samplers import sample
from tests.support.reference.mixture import DEVIATION, MEANS, SHAPE, MixtureModel

IMAGE = (1, 3, 3)


def _network_like(x, t):
    return 0.8 * x + 0.3 * torch.sin(3 * x + t.view(-1, 1, 1, 1) / 300.0)


def _mixture(**options):
    diffusion = GaussianDiffusion(DiffusionConfig(**options))
    return MixtureModel(diffusion.tables.alphas_cumprod.numpy()), diffusion


def test_progressive_generation_keeps_estimates_on_the_way_to_the_same_images():
    diffusion, indices = GaussianDiffusion(DiffusionConfig(num_timesteps=200)), torch.tensor([4, 1])
    run = progressive(_network_like, diffusion, indices, 3, every=50, shape=IMAGE)
    assert run.timesteps == [150, 100, 50, 0]
    assert run.x_0.shape == run.x_t.shape == (2, 4, *IMAGE)
    assert torch.equal(run.images, sample(_network_like, diffusion, indices, 3, shape=IMAGE))
    torch.testing.assert_close(run.x_0[:, -1], run.images)
    for k, timestep in enumerate(run.timesteps):
        t = torch.full((2,), timestep)
        expected = diffusion.predict_x_0(run.x_t[:, k], t, _network_like(run.x_t[:, k], t), clip=True)
        torch.testing.assert_close(run.x_0[:, k], expected)


def test_progressive_generation_counts_the_steps_of_a_shorter_chain():
    run = progressive(_network_like, GaussianDiffusion(), torch.arange(1), 0, 5, "ddim", 20, shape=IMAGE)
    assert run.timesteps == [789, 526, 263, 0]
    with pytest.raises(ValueError, match="every is 0"):
        progressive(_network_like, GaussianDiffusion(), torch.arange(1), 0, 0, shape=IMAGE)


def test_estimates_come_closer_to_the_result():
    model, diffusion = _mixture()
    run = progressive(model, diffusion, torch.arange(200), 0, every=200, shape=SHAPE)
    distances = (run.x_0 - run.images[:, None]).flatten(2).norm(dim=2).mean(dim=0)
    assert run.timesteps == [800, 600, 400, 200, 0]
    # From noise, at 800 and 600, the best estimate is the mean of all images.
    assert (distances[1:].diff() < 0).all()
    assert distances[-1] == 0


def test_interpolation_mixes_at_t_and_denoises_from_there():
    diffusion, indices, t = GaussianDiffusion(DiffusionConfig(num_timesteps=60)), torch.tensor([3, 8]), 25
    first, second = torch.rand(2, 2, *IMAGE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = interpolate(_network_like, diffusion, first, second, [0.0, 0.3, 1.0], indices, 5, t)
    assert ours.shape == (2, 3, *IMAGE)
    noise = [philox.normal(5, "generation/interpolation", indices, IMAGE, draw) for draw in (0, 1)]
    at = torch.full((2,), t)
    x_first, x_second = diffusion.q_sample(first, at, noise[0]), diffusion.q_sample(second, at, noise[1])
    for k, weight in enumerate([0.0, 0.3, 1.0]):
        x = (1 - weight) * x_first + weight * x_second
        for s in range(t, -1, -1):
            step_noise = philox.normal(5, "sampler/noise", indices, IMAGE, draw=s)
            x = diffusion.p_sample(_network_like, x, torch.full((2,), s), step_noise)
        torch.testing.assert_close(ours[:, k], x, rtol=1e-4, atol=1e-5)


def test_interpolation_starts_at_half_the_chain_and_ends_near_its_images():
    model, diffusion = _mixture()
    assert torch.equal(_pair(model, diffusion, None), _pair(model, diffusion, 500)), (
        "the paper's t of 500 is half of its 1,000 steps"
    )
    near = _pair(model, diffusion, 20)
    ends = torch.tensor(MEANS[:2], dtype=torch.float32)
    assert (near[0, 0].flatten() - ends[0]).norm() < 4 * DEVIATION
    assert (near[0, -1].flatten() - ends[1]).norm() < 4 * DEVIATION


def _pair(model, diffusion, timestep):
    ends = torch.tensor(MEANS[:2], dtype=torch.float32).view(2, 1, *SHAPE)
    return interpolate(model, diffusion, ends[0], ends[1], [0.0, 0.5, 1.0], torch.tensor([0]), 0, timestep)


def test_variations_share_more_the_less_noise_there_was():
    model, diffusion = _mixture()
    x_0 = torch.tensor(MEANS[0], dtype=torch.float32).view(SHAPE)
    spreads = [
        variations(model, diffusion, x_0, 200, 0, timestep).flatten(1).std(dim=0).norm() for timestep in (5, 300, 999)
    ]
    assert spreads[0] < DEVIATION / 2
    assert spreads[0] < spreads[1] < spreads[2]


def test_samples_from_one_latent_continue_a_trajectory():
    diffusion, indices = GaussianDiffusion(DiffusionConfig(num_timesteps=40)), torch.tensor([6])
    run = progressive(_network_like, diffusion, indices, 3, every=20, shape=IMAGE)
    assert run.timesteps == [20, 0]
    again = from_latent(_network_like, diffusion, run.x_t[0, 0], torch.tensor([6, 7, 8]), 3, 20)
    torch.testing.assert_close(again[0], run.images[0], rtol=1e-4, atol=1e-5)
    assert (again[1] - again[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("weights", "timestep", "message"),
    [([], 5, "at least one"), ([0.5, 1.2], 5, r"each in \[0, 1\]"), ([0.5], 1000, r"must be in \[0, 999\]")],
)
def test_wrong_settings_are_refused(weights, timestep, message):
    x = torch.zeros(1, *IMAGE)
    with pytest.raises(ValueError, match=message):
        interpolate(_network_like, GaussianDiffusion(), x, x, weights, torch.tensor([0]), 0, timestep)
    with pytest.raises(ValueError, match="cannot interpolate"):
        interpolate(_network_like, GaussianDiffusion(), x, x[:, :, :2], [0.5], torch.tensor([0]), 0, 5)
