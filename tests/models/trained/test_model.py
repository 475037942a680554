"""A trained model in a user's hands, against the formulae and functions below it."""

import numpy as np
import pytest
import torch

from models import philox
from models.likelihood import variational_bound
from models.pixels import from_uint8, to_uint8
from models.samplers import sample
from models.trained.model import load
from tests.support.snapshots import tiny_snapshot


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tiny_snapshot(tmp_path_factory.mktemp("trained") / "snapshot"), device="cpu")


def levels(x):
    """(..., C, H, W) in [-1, 1] as uint8 (..., H, W, C)."""
    return to_uint8(x).movedim(-3, -1).numpy()


def test_it_says_what_it_is(model):
    assert (model.image_shape, model.num_timesteps) == ((8, 8, 3), 20)
    assert model.num_parameters == sum(tensor.numel() for tensor in model.snapshot.model.state_dict().values())
    assert model.snapshot.provenance == {"step": 3}
    assert len(repr(model)) < 200


def test_samples_are_those_of_the_sampler_at_any_first_index_and_batch(model):
    parts = model.snapshot
    expected = levels(sample(parts.model, parts.diffusion, torch.arange(5), 4, "ddim", 7))
    ours = model.sample(5, seed=4, sampler="ddim", num_sampling_steps=7)
    assert (ours.dtype, ours.shape) == (np.uint8, (5, 8, 8, 3))
    np.testing.assert_array_equal(ours, expected)
    rest = model.sample(3, seed=4, sampler="ddim", num_sampling_steps=7, first_index=2, batch_size=2)
    # Convolutions of another batch size may round differently: a level here and there, never more.
    assert np.abs(rest.astype(int) - expected[2:]).max() <= 1
    assert np.abs(expected[0].astype(int) - expected[1]).max() > 10


def test_the_ends_of_an_interpolation_are_its_images_diffused_and_denoised(model):
    """Algorithm 2 by hand, from x_t of each image with the noise of its end."""
    diffusion, network, t = model.snapshot.diffusion, model.snapshot.model, 12
    images = model.sample(2, seed=1)
    mixed = model.interpolate(images[0], images[1], [0.0, 0.5, 1.0], timestep=t, seed=9)
    assert mixed.shape == (3, 8, 8, 3)
    index = torch.zeros(1, dtype=torch.int64)
    for end, weight in enumerate((0, 2)):
        x_0 = from_uint8(torch.from_numpy(images[end : end + 1])).permute(0, 3, 1, 2)
        noise = philox.normal(9, "generation/interpolation", index, (3, 8, 8), draw=end)
        x = diffusion.q_sample(x_0, torch.tensor([t]), noise)
        with torch.no_grad():
            for s in range(t, -1, -1):
                step_noise = philox.normal(9, "sampler/noise", index, (3, 8, 8), draw=s)
                x = diffusion.p_sample(network, x, torch.tensor([s]), step_noise)
        assert np.abs(mixed[weight].astype(int) - levels(x)[0]).max() <= 1


def test_progressive_ends_in_the_samples(model):
    seen = model.progressive(2, seed=4, every=5)
    assert seen.timesteps == [15, 10, 5, 0]
    assert seen.images.shape == (2, 4, 8, 8, 3)
    np.testing.assert_array_equal(seen.images[:, -1], model.sample(2, seed=4))
    assert len(model.progressive(1).timesteps) == 10


def test_noise_has_the_mean_and_variance_of_equation_4(model):
    """Of a grey image: mean sqrt(alpha_bar_t) x_0 and variance 1 - alpha_bar_t, with beta_t = 1e-4 ... 0.02 in 20."""
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-4, 0.02, 20))
    level = 160
    grey = np.full((400, 8, 8, 3), level, np.uint8)
    seen = model.noise(grey, [0, 3, 9, 19], seed=2)
    assert (seen.timesteps, seen.images.shape) == ([0, 3, 9, 19], (400, 4, 8, 8, 3))
    x_0 = level / 127.5 - 1
    for stage, t in enumerate([0, 3, 9]):
        x_t = seen.images[:, stage].astype(np.float64) / 127.5 - 1
        deviation = np.sqrt(1 - alphas_cumprod[t])
        assert x_t.mean() == pytest.approx(np.sqrt(alphas_cumprod[t]) * x_0, abs=4 * deviation / np.sqrt(x_t.size))
        # 8-bit levels add a rounding of variance 1/12 of a level squared.
        rounded = np.sqrt(deviation**2 + (1 / 127.5) ** 2 / 12)
        assert x_t.std() == pytest.approx(rounded, rel=0.01)
    # At the end some of it lies beyond white and is cut off; the quartiles do not see that.
    quartiles = np.quantile(seen.images[:, 3], [0.25, 0.5, 0.75]) / 127.5 - 1
    spread = 0.6745 * np.sqrt(1 - alphas_cumprod[19]) * np.array([-1, 0, 1])
    np.testing.assert_allclose(quartiles, np.sqrt(alphas_cumprod[19]) * x_0 + spread, atol=1 / 127.5)
    assert model.noise(grey[:1]).timesteps[::9] == [0, 19]


def test_variations_share_what_is_left_at_their_timestep(model):
    [image] = model.sample(1, seed=3)
    spreads = [model.variations(image, 6, timestep=t).astype(float).std(axis=0).mean() for t in (1, 19)]
    assert spreads[0] < spreads[1]
    np.testing.assert_array_equal(model.variations(image, 2, timestep=5), model.variations(image, 2, timestep=5))


def test_bits_per_dim_are_those_of_the_bound(model):
    images, parts = model.sample(3, seed=6), model.snapshot
    x_0 = from_uint8(torch.from_numpy(images)).permute(0, 3, 1, 2)
    expected = variational_bound(parts.model, parts.diffusion, x_0, torch.arange(3), 5).total.numpy()
    np.testing.assert_allclose(model.bits_per_dim(images, seed=5), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.sample(0), "num_images is 0"),
        (lambda model: model.sample(1, first_index=-1), "first_index is -1"),
        (lambda model: model.sample(1, eta=0.5), "only the sampler ddim has it"),
        (lambda model: model.sample(1, sampler="ddmi"), "did you mean ddpm"),
        (lambda model: model.noise(np.zeros((1, 8, 8, 3), np.float32)), "float32 of shape"),
        (lambda model: model.noise(np.zeros((1, 8, 8, 3), np.uint8), [20]), r"timestep is 20: it must be in \[0, 19\]"),
        (lambda model: model.variations(np.zeros((8, 8, 1), np.uint8), timestep=3), r"uint8 of shape \(N, 8, 8, 3\)"),
        (lambda model: model.bits_per_dim(np.zeros((0, 8, 8, 3), np.uint8)), "N at least 1"),
    ],
)
def test_wrong_settings_are_refused(model, call, message):
    with pytest.raises(ValueError, match=message):
        call(model)
