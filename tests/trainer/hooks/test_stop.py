"""Requests to stop and to checkpoint, on real files, some of which cannot be looked at or deleted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.launch import Worker
from trainer.hooks import stop
from trainer.hooks.stop import StopHook, Stopped, checkpoint_path, stop_path

WORKER = Worker(0, 1, torch.device("cpu"))


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of the checkpoints that were asked for; the hook looks each time, not four times per second."""
    ticks = iter(range(1, 1000))
    monkeypatch.setattr(stop.time, "monotonic", lambda: float(next(ticks)))
    return []


def hook(directory: Path, save: Callable[[int], None]) -> Callable[[int], None]:
    made = StopHook(directory, WORKER, save)
    return lambda step: made(step, None, None)  # type: ignore[arg-type]


def test_storage_that_cannot_be_looked_at_for_a_moment_ends_nothing(tmp_path: Path, saved: list[int]) -> None:
    """A link with a name that no file system takes: a look raises OSError, as ESTALE and EIO do on a network folder."""
    directory, real = tmp_path / "run", tmp_path / "real"
    real.mkdir()
    directory.symlink_to("x" * 300)
    with pytest.raises(OSError, match="File name too long"):
        stop_path(directory).exists()
    after_step = hook(directory, saved.append)
    after_step(1)
    after_step(2)
    directory.unlink()
    directory.symlink_to(real)
    after_step(3)
    stop_path(real).touch()
    with pytest.raises(Stopped, match="after step 4"):
        after_step(4)
    assert not saved


def test_a_checkpoint_request_that_cannot_be_deleted_is_met_once(tmp_path: Path, saved: list[int]) -> None:
    """A folder of that name: it exists, and unlink fails."""
    checkpoint_path(tmp_path).mkdir()
    after_step = hook(tmp_path, saved.append)
    for step in (1, 2, 3):
        after_step(step)
    assert saved == [1]
    checkpoint_path(tmp_path).rmdir()
    after_step(4)
    checkpoint_path(tmp_path).touch()
    after_step(5)
    after_step(6)
    assert saved == [1, 5]
    assert not checkpoint_path(tmp_path).exists()
