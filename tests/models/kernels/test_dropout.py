import dataclasses

import pytest
import torch
from torch import Tensor, nn

from models import philox
from models.config import ModelConfig
from models.kernels.dropout import CounterDropout, Dropout, MaskSource, kept
from models.networks.table import build_model
from tests.support.reference import models_reference as reference

COUNTERS = torch.tensor([3, 2**40 + 1, 7, 2**62 - 1])
KEY = philox.stream_key(5, "train/dropout")
SMALL = ModelConfig(
    image_size=8,
    image_channels=1,
    base_channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    dropout=0.3,
)


def source(counters: Tensor = COUNTERS) -> MaskSource:
    return MaskSource(counters, KEY)


def network(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return reference.randomise(build_model(dataclasses.replace(SMALL, **changes))).train()  # type: ignore[arg-type]


def outputs(model: nn.Module, counters: Tensor, rows: Tensor) -> Tensor:
    """The network's answer to some of sixteen fixed images, in float64."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 1, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.arange(16) * 60
    return model(x[rows], t[rows], source(counters))


@pytest.mark.parametrize(("channels", "height", "width"), [(32, 4, 4), (6, 5, 3), (3, 1, 7)])
def test_a_mask_is_the_words_of_the_stream_pixel_by_pixel(channels: int, height: int, width: int) -> None:
    x = torch.randn(4, channels, height, width)
    words = philox.uniform_bits(5, "train/dropout", COUNTERS, 9, channels * height * width)
    expected = (words >= round(0.1 * 2**32)).view(4, height, width, channels).movedim(3, 1)
    assert torch.equal(kept(CounterDropout(0.1, 9, source()), x), expected)


def test_what_is_kept_is_scaled_and_the_rest_is_zero_in_values_and_gradients() -> None:
    layer = Dropout(0.25).train()
    x = torch.randn(4, 32, 16, 16, requires_grad=True)
    y = layer(x, source())
    mask = kept(CounterDropout(0.25, 0, source()), x)
    torch.testing.assert_close(y, torch.where(mask, x / 0.75, 0.0))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, mask / 0.75)
    # A binomial share of 32,768 elements: its deviation is 0.0024.
    assert mask.double().mean().item() == pytest.approx(0.75, abs=0.012)
    assert layer.eval()(x, source()) is x


@pytest.mark.parametrize("architecture", ["ddpm", "annotated"])
def test_every_layer_has_masks_of_its_own(architecture: str) -> None:
    model = network(architecture=architecture)
    layers = [module.layer for module in model.modules() if isinstance(module, Dropout)]
    assert layers == list(range(len(layers)))
    assert len(layers) > 5
    x = torch.zeros(4, 32, 4, 4)
    assert not torch.equal(kept(CounterDropout(0.5, 0, source()), x), kept(CounterDropout(0.5, 1, source()), x))


@pytest.mark.parametrize("architecture", ["ddpm", "annotated"])
def test_an_image_has_its_masks_in_any_batch_with_and_without_checkpointing(architecture: str) -> None:
    whole = network(architecture=architecture).double()
    counters = torch.arange(16) * 1000
    expected = outputs(whole, counters, torch.arange(16))
    expected.square().sum().backward()
    parts = network(architecture=architecture, gradient_checkpointing=True).double()
    for rows in (torch.tensor([5, 1, 15]), torch.tensor([0]), torch.tensor([2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14])):
        found = outputs(parts, counters[rows], rows)
        torch.testing.assert_close(found, expected[rows], rtol=1e-10, atol=1e-12)
        found.square().sum().backward()
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-8, atol=1e-8, msg=name)
    assert not torch.allclose(outputs(whole, counters + 1, torch.arange(16)), expected)


@pytest.mark.needs("g++")
@pytest.mark.slow
def test_a_compiled_network_has_the_same_masks() -> None:
    model = network().double()
    counters = torch.arange(16)
    expected = outputs(model, counters, torch.arange(16))
    model.compile(fullgraph=True)
    torch.testing.assert_close(outputs(model, counters, torch.arange(16)), expected, rtol=1e-10, atol=1e-12)


def test_without_counters_masks_are_torchs() -> None:
    x = torch.ones(2, 8, 4, 4)
    torch.manual_seed(3)
    first = Dropout(0.5).train()(x)
    torch.manual_seed(3)
    assert torch.equal(nn.Dropout(0.5)(x), first)
