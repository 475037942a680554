"""The paper's U-Net: its size, its numbers against two independent implementations, and how it behaves."""

import math

import numpy as np
import pytest
import torch

from models.config import ModelConfig
from models.networks.blocks import AttentionBlock, ResidualBlock, sinusoidal_embedding
from models.networks.table import build_model, build_on_meta
from tests.support.reference import models_reference as reference

CIFAR = ModelConfig()
CELEBAHQ = ModelConfig(image_size=256, channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0)
SMALL = ModelConfig(
    image_size=16, base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_resolutions=(8,)
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 35_746_307),
        ({"base_channels": 32}, 2_245_763),
        ({"base_channels": 64}, 8_952_067),
        ({"image_size": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4)}, 113_673_219),
        ({"image_size": 256, "channel_multipliers": (1, 1, 2, 2, 4, 4), "base_channels": 192}, 255_677_955),
    ],
)
def test_parameter_counts_are_those_of_the_paper(changes, expected):
    assert sum(p.numel() for p in build_on_meta(ModelConfig(**changes)).parameters()) == expected


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        ModelConfig(image_size=16, base_channels=32, channel_multipliers=(1, 2, 2, 2)),
        ModelConfig(
            image_size=32,
            image_channels=1,
            base_channels=32,
            channel_multipliers=(2, 1, 3),
            num_res_blocks=3,
            attention_resolutions=(16, 8),
        ),
        ModelConfig(image_size=8, base_channels=64, channel_multipliers=(1,), attention_resolutions=()),
    ],
)
def test_float64_output_equals_the_plain_implementation_to_1e_10(config):
    model = reference.randomise(build_model(config)).double().eval()
    x = torch.randn(2, *config.image_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference.unet(x, [0, 999], model.state_dict(), config)
        ours = model(x, torch.tensor([0, 999]))
    assert ours.dtype == torch.float64
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("config", "size"), [(CIFAR, 32), (CELEBAHQ, 64)])
def test_output_equals_that_of_diffusers_to_1e_4(config, size):
    from diffusers import UNet2DModel

    from models.convert.diffusers import _unet_settings
    from models.convert.names import diffusers_name

    # The 256 pixel layout at half its width and a quarter of its size, to be quick; the layout is what matters.
    if config is CELEBAHQ:
        config = ModelConfig(**{**vars(config), "base_channels": 64})
    settings = {name: value for name, value in _unet_settings(config).items() if not name.startswith("_")}
    with torch.device("meta"):
        theirs = UNet2DModel(**settings)
    ours = reference.randomise(build_on_meta(config).to_empty(device="cpu")).eval()
    shapes = {name: p.shape for name, p in theirs.named_parameters()}
    weights = {diffusers_name(name, config): p.detach() for name, p in ours.named_parameters()}
    theirs.load_state_dict({name: w.reshape(shapes[name]) for name, w in weights.items()}, assign=True)
    x, t = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 999])
    with torch.no_grad():
        expected = theirs.eval()(x, t).sample
        torch.testing.assert_close(ours(x, t), expected, rtol=0, atol=1e-4)


def test_the_time_embedding_is_sin_then_cos_with_half_minus_one():
    embedding = sinusoidal_embedding(torch.tensor([0, 7, 999]), 32, torch.float64).numpy()
    frequency = 10000.0 ** (-np.arange(16) / 15)
    angle = np.array([0, 7, 999])[:, None] * frequency
    np.testing.assert_allclose(embedding, np.concatenate([np.sin(angle), np.cos(angle)], axis=1), atol=1e-12)


def test_attention_follows_each_block_at_its_resolution_and_is_in_the_middle():
    model = build_on_meta(CIFAR)
    assert [len(stage.attentions) for stage in model.down] == [0, 2, 0, 0]
    assert [len(stage.attentions) for stage in model.up] == [0, 3, 0, 0]
    assert sum(isinstance(m, AttentionBlock) for m in model.modules()) == 6
    assert sum(isinstance(m, ResidualBlock) for m in model.modules()) == 4 * 2 + 2 + 4 * 3


def test_norms_have_32_groups_and_epsilon_1e_6():
    norms = [m for m in build_on_meta(CIFAR).modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(32, 1e-6)}


def test_weights_start_glorot_uniform_biases_zero_and_last_layers_zero():
    torch.manual_seed(0)
    model = build_model(ModelConfig(base_channels=64))
    zero = {"conv_out"} | {f"{n}.conv2" for n, m in model.named_modules() if isinstance(m, ResidualBlock)}
    zero |= {f"{n}.projection" for n, m in model.named_modules() if isinstance(m, AttentionBlock)}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            continue
        assert not module.bias.any()
        if name in zero:
            assert not module.weight.any(), name
            continue
        weight = module.weight.detach()
        area = weight[0, 0].numel() if weight.dim() == 4 else 1
        limit = math.sqrt(6.0 / (area * (weight.shape[0] + weight.shape[1])))
        assert weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
    assert not model(torch.randn(2, 3, 32, 32), torch.tensor([0, 5])).any()


def test_dropout_acts_in_training_only():
    model = reference.randomise(build_model(ModelConfig(**{**vars(SMALL), "dropout": 0.5})))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    assert not torch.equal(model(x, t), model(x, t))
    model.eval()
    assert torch.equal(model(x, t), model(x, t))
    still = build_model(ModelConfig(**{**vars(SMALL), "dropout": 0.0}))
    still.load_state_dict(model.state_dict())
    assert torch.equal(still.train()(x, t), model(x, t))


def test_gradient_checkpointing_changes_no_gradient():
    plain = reference.randomise(build_model(SMALL))
    saving = build_model(ModelConfig(**{**vars(SMALL), "gradient_checkpointing": True}))
    saving.load_state_dict(plain.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    for model in (plain, saving):
        torch.manual_seed(0)
        model(x, t).square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_every_parameter_has_a_gradient():
    model = reference.randomise(build_model(SMALL))
    model(torch.randn(2, 3, 16, 16), torch.tensor([1, 2])).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_channels_last_gives_the_same_numbers():
    model = reference.randomise(build_model(SMALL)).double().eval()
    x, t = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([1, 999])
    expected = model(x, t)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last), t), expected, rtol=0, atol=1e-12)


def test_bfloat16_weights_and_autocast_stay_close_and_keep_the_dtype_of_the_images():
    model = reference.randomise(build_model(SMALL)).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1, 999])
    with torch.no_grad():
        expected = model(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            automatic = model(x, t)
        low = model.bfloat16()(x, t)
    scale = float(expected.abs().max())
    for output in (automatic, low):
        assert output.dtype == torch.float32
        assert 0 < (output - expected).abs().max() < 0.1 * scale


def test_other_sizes_that_can_be_halved_are_accepted():
    model = build_model(SMALL)
    assert model(torch.zeros(1, 3, 10, 24), torch.tensor([0])).shape == (1, 3, 10, 24)


@pytest.mark.parametrize(
    ("shape", "timesteps", "message"),
    [
        ((1, 3, 15, 16), 1, "multiples of 2"),
        ((1, 1, 16, 16), 1, r"takes \(B, 3, H, W\)"),
        ((3, 16, 16), 3, r"takes \(B, 3, H, W\)"),
        ((2, 3, 16, 16), 1, "one timestep for each of the 2 images"),
    ],
)
def test_input_that_does_not_fit_is_refused(shape, timesteps, message):
    model = build_on_meta(SMALL)
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape, device="meta"), torch.zeros(timesteps, dtype=torch.int64, device="meta"))
