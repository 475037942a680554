import pytest
import torch
from torch import nn

from cluster.launch import Worker
from models.networks.table import build_model
from tests.support.trainer import TINY_MODEL
from trainer.config.presets import PRESETS
from trainer.hooks.throughput import Peak, model_flops_per_image, peak_flops_per_second


def test_flops_are_those_of_every_convolution_linear_layer_and_attention_by_hand() -> None:
    """Each layer's own count, from the shapes it sees: 2 x inputs of a dot product x outputs."""
    model, flops = build_model(TINY_MODEL), []

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = layer.get_parameter("weight")
        flops.append(2 * weight[0].numel() * output.numel())

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    model(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    num_attentions = sum(type(layer).__name__ == "AttentionBlock" for layer in model.modules())
    assert num_attentions
    # Queries on keys, and weights on values: 64 pixels with 64 pixels, 32 channels each.
    attention = num_attentions * 2 * 2 * 64 * 64 * 32
    assert model_flops_per_image(TINY_MODEL) == 3 * (sum(flops) + attention)


@pytest.mark.parametrize(("preset", "multiply_adds"), [("cifar10", 6.1e9), ("celebahq256", 248.7e9)])
def test_the_papers_networks_need_the_published_computation(preset: str, multiply_adds: float) -> None:
    """Multiply-adds of a forward pass as Fang et al. 2023 (Structural Pruning for Diffusion Models) give them."""
    found = model_flops_per_image(PRESETS[preset]().model) / 3 / 2
    assert found == pytest.approx(multiply_adds, rel=0.03)


def test_the_measured_peak_is_what_a_product_takes() -> None:
    torch.set_num_threads(1)
    a = torch.ones(1024, 1024)
    torch.mm(a, a)
    assert 1e8 < peak_flops_per_second(torch.device("cpu"), "fp32") < 1e13


def test_no_speed_is_more_than_the_peak_however_low_that_was_measured() -> None:
    peak = Peak(Worker(0, 1, torch.device("cpu")), "fp32")
    assert 0 < peak.fraction(1e6) < 0.1
    assert peak.fraction(1e18) == 1.0  # as of a machine that was busy when it was measured
    assert peak.fraction(5e17) == 0.5
