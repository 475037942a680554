"""What only a GPU shows: that its float32 is float32, and that a run trained on it is the one trained on a CPU."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import conv2d

from cluster.tracking.spool import read_metrics
from models.config import ModelConfig
from models.diffusion import GaussianDiffusion
from models.networks.table import build_model, eval_mode
from models.pixels import to_uint8
from models.precision import use_tf32
from models.samplers import sample
from tests.support.failures.faults import TINY
from tests.support.trainer import NO_GRADIENT, command, final_weights, losses

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
NUM_STEPS = 8


@pytest.fixture(scope="module")
def on_cpu(data: Path, storage: Path) -> Path:
    return train(data, storage, "cpu", use_gpu=False)


def train(data: Path, storage: Path, name: str, *arguments: str, use_gpu: bool = True) -> Path:
    """The run's directory. Channels twice the groups, so that all biases have a gradient."""
    where = ("--data.path", str(data), "--run.storage", str(storage), "--run.name", name)
    model = ("--model.base_channels", "64", "--workers.use_gpu", json.dumps(use_gpu))
    ended = command(*TINY, *where, *model, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return storage / name


def assert_close_to(expected: Path, found: Path) -> None:
    assert len(losses(found)) == NUM_STEPS
    assert losses(found) == pytest.approx(losses(expected), rel=1e-5)
    weights = final_weights(found)
    for name, tensor in final_weights(expected).items():
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def convolution_error() -> float:
    """Of float32 on the GPU against float64 on the CPU, relative to the largest output."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 128, 16, 16, dtype=torch.float64, generator=generator)
    weight = torch.randn(128, 128, 3, 3, dtype=torch.float64, generator=generator)
    exact = conv2d(x, weight, padding=1)
    found = conv2d(x.float().cuda(), weight.float().cuda(), padding=1).cpu()
    return ((found - exact).abs().max() / exact.abs().max()).item()


def test_float32_is_rounded_to_tf32_only_where_asked_for() -> None:
    use_tf32(True)
    rounded = convolution_error()
    use_tf32(False)
    assert convolution_error() < 2e-6
    assert rounded > 1e-5


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_every_engine_trains_the_run_of_a_cpu(data: Path, storage: Path, on_cpu: Path, strategy: str) -> None:
    assert_close_to(on_cpu, train(data, storage, strategy, "--workers.strategy", strategy))


def test_a_run_moves_between_a_gpu_and_a_cpu(data: Path, storage: Path, on_cpu: Path) -> None:
    train(data, storage, "moved", "--train.num_steps", "3")
    train(data, storage, "moved", "--train.num_steps", "5", use_gpu=False)
    assert_close_to(on_cpu, train(data, storage, "moved"))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (("--train.precision", "bf16"), 2e-2),
        (("--train.precision", "tf32"), 2e-3),
        (("--workers.compile", "true"), 1e-5),
        (("--model.gradient_checkpointing", "true", "--train.max_images_per_pass", "5"), 1e-5),
    ],
)
def test_the_losses_are_those_of_float32(
    data: Path, storage: Path, on_cpu: Path, options: tuple[str, ...], tolerance: float
) -> None:
    found = train(data, storage, "-".join(options).replace("--", ""), *options)
    assert losses(found) == pytest.approx(losses(on_cpu), rel=tolerance)


def test_what_the_gpu_does_is_measured(data: Path, storage: Path) -> None:
    metrics = read_metrics(train(data, storage, "measured"))
    assert all(value > 0 for _, value, _ in metrics["system/gpu_peak_memory_gib"])
    assert all(0 < value < 1 for _, value, _ in metrics["train/model_flops_fraction_of_peak"])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_samples_are_those_of_a_cpu(sampler: str) -> None:
    use_tf32(False)
    torch.manual_seed(0)
    config = ModelConfig(image_size=16, base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1)
    model, diffusion = build_model(config), GaussianDiffusion()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    images = []
    for device in ("cpu", "cuda"):
        with eval_mode(model.to(device)):
            images.append(to_uint8(sample(model, diffusion, torch.arange(4), 7, sampler, 50)).cpu().int())
    difference = (images[0] - images[1]).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
