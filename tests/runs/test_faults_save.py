"""Faults while a checkpoint is written, and to what was written: each is really done to a real run."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.storage import COMPLETE, complete_directories, verify
from tests.support.failures.disks import small_disk
from tests.support.failures.faults import TINY, Ended, Running, assert_same_run, checkpoint_names, run, wait_for

pytestmark = pytest.mark.heavy

STEPS = 8


@pytest.fixture(scope="module")
def unbroken(data: Path, storage: Path) -> Path:
    assert train(data, storage, "unbroken").code == 0
    return storage / "unbroken"


def train(data: Path, storage: Path, name: str, *arguments: str, **environment: str) -> Ended:
    where = ("--data.path", str(data), "--run.storage", str(storage), "--run.name", name)
    return run(storage / "logs", *TINY, *where, *arguments, **environment)


@pytest.mark.parametrize("moment", ["before_write", "in_write", "after_write", "before_rename", "after_rename"])
def test_a_kill_at_any_moment_of_a_save_loses_no_sample(data: Path, storage: Path, unbroken: Path, moment: str) -> None:
    killed = train(data, storage, moment, RAYDDPM_FAULT=f"save.{moment}:step=4:kill")
    assert killed.code == -9, killed.output
    exists = moment == "after_rename"
    assert checkpoint_names(storage / moment) == ["step-00000002", "step-00000004"][: 1 + exists]
    # The fault is still asked for: it has happened to this run, and does not happen again.
    resumed = train(data, storage, moment, RAYDDPM_FAULT=f"save.{moment}:step=4:kill")
    assert resumed.code == 0, resumed.output
    assert f"training from step {4 if exists else 2} to 8" in resumed.output
    assert_same_run(storage / moment, unbroken, data, STEPS)
    left = [path.name for path in (storage / moment / "checkpoints").iterdir() if path.name.startswith(".")]
    assert left == []


@pytest.fixture(scope="module")
def half(data: Path, storage: Path) -> Path:
    """A run of 8 steps that has come to step 4, with checkpoints of steps 2 and 4."""
    assert train(data, storage, "half", "--train.num_steps", "4").code == 0
    return storage / "half"


def copy_of(run_directory: Path, name: str) -> Path:
    """The same run under another name, for a test to damage."""
    copy = run_directory.parent / name
    shutil.copytree(run_directory, copy)
    (copy / "spool" / "mlflow.json").unlink()
    return copy


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (flip, "ema.safetensors", "ema.safetensors does not match its committed sha256"),
        (truncate, "optimizer.safetensors", "optimizer.safetensors has"),
        (truncate, COMPLETE, "COMPLETE.json is unreadable"),
        (Path.unlink, "state.json", "state.json is missing"),
    ],
    ids=["flipped", "truncated", "marker", "missing"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    data: Path, half: Path, unbroken: Path, damage: Callable[[Path], None], file: str, message: str
) -> None:
    damaged = copy_of(half, f"damaged-{file}")
    newest = complete_directories(damaged / "checkpoints")[-1]
    damage(newest / file)
    resumed = train(data, damaged.parent, damaged.name)
    assert resumed.code == 0, resumed.output
    assert f"ERROR trainer.checkpoint: checkpoint passed over: {newest}: {message}" in resumed.output
    assert "training from step 2 to 8" in resumed.output
    assert_same_run(damaged, unbroken, data, STEPS)


class Malicious:
    """Unpickled, it makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def test_a_pickle_in_place_of_a_checkpoint_is_never_unpickled(
    data: Path, half: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Planted with its right hash, by someone who can write to the storage."""
    planted = copy_of(half, "planted")
    newest = complete_directories(planted / "checkpoints")[-1]
    content = pickle.dumps(Malicious(str(tmp_path / "executed")))
    record = json.loads((newest / COMPLETE).read_text())
    for name in ("model.safetensors", "model.pt"):
        (newest / name).write_bytes(content)
        record["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (newest / COMPLETE).write_text(json.dumps(record))
    resumed = train(data, planted.parent, planted.name)
    assert resumed.code == 0, resumed.output
    assert "model.safetensors is not a safetensors file" in resumed.output
    assert not (tmp_path / "executed").exists()
    assert_same_run(planted, unbroken, data, STEPS)
    pickle.loads(content)
    assert (tmp_path / "executed").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "32m") as disk:
        yield disk


def free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def test_a_full_disk_ends_the_run_and_costs_no_checkpoint(
    data: Path, storage: Path, unbroken: Path, disk: Path
) -> None:
    tracking: tuple[str, ...] = ("--run.tracking_uri", f"sqlite:///{storage}/mlflow.db", "--checkpoint.keep_last", "2")
    tracking += ("--checkpoint.keep_every_steps", "0")
    directory = disk / "run"
    arguments = [*TINY, "--data.path", str(data), "--run.storage", str(disk), "--run.name", "run", *tracking]
    with Running(storage / "logs", arguments, {"RAYDDPM_FAULT": "step.before:step=5:delay=3"}) as running:
        wait_for(lambda: checkpoint_names(directory) == ["step-00000002", "step-00000004"])
        size = sum(path.stat().st_size for path in complete_directories(directory / "checkpoints")[-1].iterdir())
        (disk / "ballast").write_bytes(bytes(free_bytes(disk) - size // 2))
        full = running.wait()
    assert full.code == 2
    assert "checkpoint of step 6 is tried again: " in full.output
    (message,) = [line for line in full.output.splitlines() if line.startswith("error: ")]
    assert "the checkpoint of step 6 could not be written, twice" in message
    assert "No space left on device" in message
    assert checkpoint_names(directory) == ["step-00000002", "step-00000004"]
    assert not [path for path in (directory / "checkpoints").iterdir() if path.name.startswith(".")]
    for checkpoint in complete_directories(directory / "checkpoints"):
        verify(checkpoint)
    refused = train(data, disk, "run", *tracking)
    assert refused.code == 2
    assert "free some, or give another folder" in refused.output
    (disk / "ballast").unlink()
    again = train(data, disk, "run", *tracking)
    assert again.code == 0, again.output
    assert "training from step 4 to 8" in again.output
    assert_same_run(directory, unbroken, data, STEPS)
    assert checkpoint_names(directory) == ["step-00000006", "step-00000008"]
