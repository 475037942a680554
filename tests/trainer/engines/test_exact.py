"""Runs with `train.reduction exact` on different numbers of workers: their states are equal to the bit."""

import dataclasses
from pathlib import Path

import pytest
import torch

from cluster.tracking.spool import read_metrics
from tests.support.trainer import final_weights, tiny_config, train_locally
from trainer.config.config import Config, semantics

pytestmark = pytest.mark.heavy
GLOBAL: dict[str, object] = {"max_grad_norm": 0.5}
SLICES: dict[str, object] = {"clip_scope": "slice", "clip_slice_images": 2, "max_grad_norm": 0.5}


def exact_config(
    data: Path, storage: Path, name: str, num_workers: int, num_steps: int, optim: dict[str, object], **train: object
) -> Config:
    """16 images per step in eight units, dropout, attention, and convolutions of two widths."""
    config = tiny_config(
        data,
        storage,
        name,
        train={"global_batch_size": 16, "reduction": "exact", "num_steps": num_steps, **train},
        workers={"num_workers": num_workers},
        optim={"warmup_steps": 2, **optim},
        checkpoint={"every_steps": 10_000},
    )
    model = dataclasses.replace(config.model, channel_multipliers=(1, 2), attention_resolutions=(4,), dropout=0.2)
    return dataclasses.replace(config, model=model)


def trained(storage: Path) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """All tensors of the last checkpoint, and what was logged of every step."""
    tensors = {
        f"{file}/{name}": tensor
        for file in ("model", "ema", "optimizer")
        for name, tensor in final_weights(storage, f"{file}.safetensors").items()
    }
    names = ("train/loss", "train/grad_norm", *(f"train/loss_quartile_{number}" for number in range(1, 5)))
    metrics = read_metrics(storage)
    return tensors, {name: [value for _, value, _ in metrics[name]] for name in names}


def assert_equal_to_the_bit(one: Path, other: Path) -> None:
    (tensors, metrics), (other_tensors, other_metrics) = trained(one), trained(other)
    assert other_tensors.keys() == tensors.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(other_tensors[name], tensor)] == []
    assert other_metrics == metrics


@pytest.mark.parametrize("optim", [GLOBAL, pytest.param(SLICES, marks=pytest.mark.slow)], ids=["global", "slices"])
def test_a_run_that_goes_on_with_other_numbers_of_workers_has_the_same_bits(
    data: Path, tmp_path: Path, optim: dict[str, object]
) -> None:
    """Three workers have two, three and three of the eight units, so they send several nodes of the tree."""
    alone = train_locally(exact_config(data, tmp_path, "alone", 1, 6, optim)).directory
    for num_workers, num_steps in ((3, 3), (2, 6)):
        moved = train_locally(exact_config(data, tmp_path, "moved", num_workers, num_steps, optim)).directory
    assert_equal_to_the_bit(alone, moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optim", "train"),
    [
        (GLOBAL, {}),
        (SLICES, {}),
        (GLOBAL, {"precision": "bf16"}),
        (GLOBAL, {"unit_images": 4, "max_images_per_pass": 3}),
    ],
    ids=["global", "slices", "bf16", "micro-batches"],
)
def test_fifty_steps_on_any_number_of_workers_with_resumes_have_the_same_bits(
    data: Path, tmp_path: Path, optim: dict[str, object], train: dict[str, object]
) -> None:
    alone = train_locally(exact_config(data, tmp_path, "1", 1, 50, optim, **train)).directory
    for num_workers in (2, 3, 4):
        unbroken = train_locally(exact_config(data, tmp_path, str(num_workers), num_workers, 50, optim, **train))
        assert_equal_to_the_bit(alone, unbroken.directory)
    for num_workers, num_steps in ((4, 11), (1, 20), (3, 33), (2, 41), (4, 50)):
        moved = train_locally(exact_config(data, tmp_path, "moved", num_workers, num_steps, optim, **train))
    assert_equal_to_the_bit(alone, moved.directory)


@pytest.mark.slow
def test_the_fast_reduction_has_other_bits_on_other_numbers_of_workers(data: Path, tmp_path: Path) -> None:
    """Which shows that the tests above could fail."""
    one, two = (
        train_locally(exact_config(data, tmp_path, str(workers), workers, 6, GLOBAL, reduction="fast")).directory
        for workers in (1, 2)
    )
    (tensors, metrics), (others, other_metrics) = trained(one), trained(two)
    assert not all(torch.equal(others[name], tensor) for name, tensor in tensors.items())
    assert other_metrics["train/loss"] == pytest.approx(metrics["train/loss"], rel=1e-5)


def test_exact_is_part_of_what_a_run_is_and_fast_leaves_it_as_it_was(data: Path, tmp_path: Path) -> None:
    exact = exact_config(data, tmp_path, "run", 1, 6, GLOBAL)
    fast = dataclasses.replace(exact, train=dataclasses.replace(exact.train, reduction="fast"))
    added = {"train.reduction": "exact", "train.unit_images": 2}
    assert semantics(exact, "digest") == semantics(fast, "digest") | added
    assert "train.reduction" not in semantics(fast, "digest")
