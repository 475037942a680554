import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from cluster.launch import Worker
from data_pipeline.loader import Batch
from data_pipeline.order import SampleOrder
from models.diffusion import GaussianDiffusion
from models.networks.table import build_model
from tests.support.trainer import NO_GRADIENT, TINY_MODEL, final_weights, losses, tiny_config, train_locally
from trainer.config.config import Config
from trainer.engines.base import NonFiniteError
from trainer.engines.ddp import DdpEngine
from trainer.engines.exact import ExactEngine
from trainer.objective import Objective

CPU = Worker(0, 1, torch.device("cpu"))


def engine_for(config: Config, zero_init: bool = True) -> DdpEngine:
    torch.manual_seed(config.train.seed)
    model = build_model(config.model).double()
    if not zero_init:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    objective = Objective(GaussianDiffusion(config.diffusion), config.train.seed, True, torch.float64)
    kind = ExactEngine if config.train.reduction == "exact" else DdpEngine
    return kind(model, objective, config, CPU)


def random_batch(size: int, step: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Batch(step, torch.arange(step * size, (step + 1) * size), images)


FLOAT64 = {"precision": "fp64", "global_batch_size": 13, "num_steps": 50}


def with_dropout(config: Config) -> Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.2))


@pytest.fixture(scope="module")
def in_one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one worker without micro-batches."""
    storage = tmp_path_factory.mktemp("one")
    return train_locally(with_dropout(tiny_config(data, storage, "one", train=FLOAT64))).directory


@pytest.mark.parametrize("variant", [(1, 5), (3, 2)], ids=str)
def test_losses_and_weights_do_not_depend_on_workers_and_micro_batches(
    data: Path, tmp_path: Path, in_one: Path, variant: tuple[int, int]
) -> None:
    """Float64, so that only the order of sums differs: a wrong weight, sample or draw would show at once.

    The whole trainer; the engines by themselves, all of them, are in test_zero.py.
    """
    num_workers, max_images = variant
    changed = tiny_config(
        data,
        tmp_path,
        "other",
        checkpoint={"every_steps": 50},
        train=FLOAT64 | {"max_images_per_pass": max_images},
        workers={"num_workers": num_workers},
    )
    other = train_locally(with_dropout(changed)).directory
    assert losses(other) == pytest.approx(losses(in_one), rel=1e-10)
    expected, found = final_weights(in_one, "model.safetensors"), final_weights(other, "model.safetensors")
    for name in expected:
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-10, msg=name)


def test_the_same_run_twice_is_equal_to_the_bit(data: Path, tmp_path: Path) -> None:
    config = {"workers": {"num_workers": 2}}
    first = train_locally(tiny_config(data, tmp_path, "first", **config)).directory
    second = train_locally(tiny_config(data, tmp_path, "second", **config)).directory
    assert losses(first) == losses(second)
    a, b = final_weights(first), final_weights(second)
    assert all(torch.equal(a[name], b[name]) for name in a)


def slow_reference(model: nn.Module, config: Config, batch: Batch, objective: Objective) -> dict[str, torch.Tensor]:
    """One step of the authors' recipe: slices clipped to norm 1, averaged, Adam from zero moments."""
    optim, size = config.optim, config.optim.clip_slice_images
    num_slices = len(batch.images) // size
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for number in range(num_slices):
        model.zero_grad()
        for row in range(number * size, (number + 1) * size):
            images, counters = batch.images[row : row + 1], batch.counters[row : row + 1]
            (objective.losses(model, images, counters)[0] / size).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert gradients.keys() == total.keys()
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
        for name, gradient in gradients.items():
            total[name] += gradient * min(1.0, optim.max_grad_norm / norm) / num_slices
    rate = optim.learning_rate * min(batch.step / optim.warmup_steps, 1.0)
    after = {}
    for name, parameter in model.named_parameters():
        first = (1 - optim.beta1) * total[name] / (1 - optim.beta1)
        second = (1 - optim.beta2) * total[name] ** 2 / (1 - optim.beta2)
        after[name] = parameter.detach() - rate * first / (second.sqrt() + optim.eps)
    return after


@pytest.mark.parametrize("reduction", ["fast", "exact"])
@pytest.mark.parametrize("images_per_pass", [0, 3])
def test_a_step_with_per_slice_clipping_agrees_with_a_slow_reference(
    data: Path, images_per_pass: int, reduction: str
) -> None:
    config = tiny_config(
        data,
        Path("/unused"),
        "unused",
        optim={"clip_scope": "slice", "clip_slice_images": 4, "warmup_steps": 100},
        train={
            "global_batch_size": 12,
            "precision": "fp64",
            "max_images_per_pass": images_per_pass,
            "reduction": reduction,
        },
    )
    engine = engine_for(config, zero_init=False)
    reference = engine_for(config, zero_init=False)
    batch = random_batch(12, step=7)
    expected = slow_reference(reference.module, config, batch, reference._objective)
    engine.step(batch)
    for name, parameter in engine.module.named_parameters():
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-6, atol=1e-9, msg=name)


def test_slices_are_clipped_before_the_average_and_not_after(data: Path) -> None:
    config = tiny_config(
        data,
        Path("/unused"),
        "unused",
        optim={"clip_scope": "slice", "clip_slice_images": 4, "max_grad_norm": 1e-3},
        train={"global_batch_size": 12, "precision": "fp64"},
    )
    result = engine_for(config, zero_init=False).step(random_batch(12))
    assert 1e-4 < result.grad_norm.item() < 1e-3


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
@pytest.mark.parametrize("unit_images", [1, 4])
def test_an_exact_step_is_the_step_of_the_plain_engine(data: Path, max_grad_norm: float, unit_images: int) -> None:
    results, weights = [], []
    for reduction in ("fast", "exact"):
        train = {"global_batch_size": 12, "precision": "fp64", "reduction": reduction, "unit_images": unit_images}
        optim = {"max_grad_norm": max_grad_norm, "warmup_steps": 0}
        config = tiny_config(data, Path("/unused"), "unused", train=train, optim=optim)
        engine = engine_for(config, zero_init=False)
        results.append(engine.step(random_batch(12)))
        weights.append(engine.model_state())
    torch.testing.assert_close(results[1].losses, results[0].losses, rtol=1e-10, atol=0)
    torch.testing.assert_close(results[1].grad_norm, results[0].grad_norm, rtol=1e-10, atol=0)
    for name, expected in weights[0].items():
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(weights[1][name], expected, rtol=1e-6, atol=1e-9, msg=name)


def test_the_rate_rises_from_zero_and_stays() -> None:
    config = tiny_config(
        Path("/unused"), Path("/unused"), "unused", optim={"learning_rate": 2e-4, "warmup_steps": 5000}
    )
    engine = engine_for(config)
    assert [engine.learning_rate(step) for step in (0, 2500, 5000, 10**6)] == [0.0, 1e-4, 2e-4, 2e-4]


@pytest.mark.parametrize("reduction", ["fast", "exact"])
def test_a_gradient_that_is_not_finite_changes_no_weight(data: Path, reduction: str) -> None:
    config = tiny_config(data, Path("/unused"), "unused", train={"reduction": reduction})
    engine = engine_for(config)
    with torch.no_grad():
        engine.module.get_parameter("conv_in.bias")[0] = float("nan")
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    with pytest.raises(NonFiniteError, match="step 0"):
        engine.step(random_batch(12))
    for name, parameter in engine.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.needs("g++")
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
def test_a_compiled_network_trains_the_same_run(data: Path, tmp_path: Path, strategy: str) -> None:
    plain = train_locally(tiny_config(data, tmp_path, "plain")).directory
    workers = {"num_workers": 2, "strategy": strategy, "compile": True}
    compiled = train_locally(tiny_config(data, tmp_path, "compiled", workers=workers)).directory
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    assert losses(compiled) != losses(plain)  # which shows that other code ran
    assert final_weights(compiled).keys() == final_weights(plain).keys()


def test_bf16_trains_float32_weights(data: Path) -> None:
    config = tiny_config(data, Path("/unused"), "unused", train={"precision": "bf16"})
    torch.manual_seed(0)
    engine = DdpEngine(build_model(TINY_MODEL), Objective(GaussianDiffusion(config.diffusion), 0, True), config, CPU)
    first = engine.step(random_batch(12)).losses.mean()
    for step in range(1, 30):
        last = engine.step(dataclasses.replace(random_batch(12), step=step)).losses.mean()
    assert {p.dtype for p in engine.module.parameters()} == {torch.float32}
    assert last < 0.9 * first


def test_flips_timesteps_and_noise_follow_the_sample_and_not_its_place() -> None:
    objective = Objective(GaussianDiffusion(PRESET_DIFFUSION), 5, True, torch.float64)
    order = SampleOrder([40], 5, 12, "digest")
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8)
    model = build_model(TINY_MODEL).double()
    nn.init.normal_(model.get_parameter("conv_out.weight"))  # its zeros would hide what the network sees
    whole = torch.from_numpy(order.counters(3))
    expected = objective.losses(model, images, whole).detach()
    for world_size in (2, 3, 5):
        parts = [torch.from_numpy(order.counters(3, rank, world_size)) for rank in range(world_size)]
        sizes = [len(part) for part in parts]
        found = [objective.losses(model, i, c) for i, c in zip(images.split(sizes), parts, strict=True)]
        torch.testing.assert_close(torch.cat(found).detach(), expected, rtol=1e-12, atol=0)


def test_half_of_the_draws_are_mirrored_and_timesteps_are_uniform() -> None:
    from trainer import randomness

    counters = torch.arange(100_000)
    assert randomness.flips(0, counters).double().mean().item() == pytest.approx(0.5, abs=0.01)
    counts = torch.bincount(randomness.timesteps(0, counters, 1000), minlength=1000).double()
    assert len(counts) == 1000
    # Chi-square with 999 degrees of freedom: mean 999, deviation 45.
    assert ((counts - 100) ** 2 / 100).sum().item() == pytest.approx(999, abs=5 * 45)


PRESET_DIFFUSION = GaussianDiffusion().config
