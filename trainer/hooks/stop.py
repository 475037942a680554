"""How a run is asked to checkpoint or to end: signals, files, and notices that a machine will be taken away."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from cluster.launch import Worker
from cluster.run_directory import CHECKPOINT_REQUEST, STOP
from data_pipeline.loader import Batch
from trainer.engines.base import StepResult

_GO_ON, _CHECKPOINT, _STOP = 0, 1, 2
_SAME_WISH_SECONDS = 2.0
_log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 (an end, not an error)
    """Training ends early because it was asked to; raised on all workers after the same step."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


class StopHook:
    """Ends training on all workers after the same step, once the run directory holds a STOP file.

    A CHECKPOINT file has them checkpoint and train on; so does the notice that a worker's machine will be taken away.
    """

    def __init__(self, run_directory: Path, worker: Worker, checkpoint: Callable[[int], None]):
        """checkpoint: collective; called with the step, returns when it is committed."""
        self._stop_path, self._checkpoint_path = stop_path(run_directory), checkpoint_path(run_directory)
        self._worker, self._checkpoint = worker, checkpoint
        self._looked, self._answered_notice = 0.0, False

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        wish = torch.tensor(float(self._wish()), device=self._worker.device)
        if self._worker.world_size > 1:
            dist.all_reduce(wish, dist.ReduceOp.MAX)
        agreed = int(wish.item())
        if agreed == _STOP:
            raise Stopped(step)
        if agreed == _CHECKPOINT:
            self._answered_notice = self._worker.notified()
            self._checkpoint(step)
            if self._worker.rank == 0:
                self._checkpoint_path.unlink(missing_ok=True)

    def _wish(self) -> int:
        asked = self._asked() if self._worker.rank == 0 else _GO_ON
        return max(asked, _CHECKPOINT if self._worker.notified() and not self._answered_notice else _GO_ON)

    def _asked(self) -> int:
        """Looks at the storage at most four times a second: it may be a network folder."""
        now = time.monotonic()
        if now - self._looked < 0.25:
            return _GO_ON
        self._looked = now
        if self._stop_path.exists():
            return _STOP
        return _CHECKPOINT if self._checkpoint_path.exists() else _GO_ON


def stop_path(run_directory: Path) -> Path:
    """The file that asks a run to checkpoint and end."""
    return run_directory / STOP


def checkpoint_path(run_directory: Path) -> Path:
    """The file that asks a run to checkpoint after the step it is in; gone once the checkpoint is committed."""
    return run_directory / CHECKPOINT_REQUEST


def request_checkpoint(run_directory: Path, timeout_seconds: float = 120.0) -> None:
    """Ask a running run for a checkpoint and wait until it is committed, or for so long. Never raises OSError."""
    path = checkpoint_path(run_directory)
    deadline = time.monotonic() + timeout_seconds
    try:
        path.touch()
        while path.exists():
            if time.monotonic() > deadline:
                path.unlink(missing_ok=True)
                _log.warning(
                    "no checkpoint within %.0f s: what was done since the last one is repeated", timeout_seconds
                )
                return
            time.sleep(0.1)
    except OSError as error:
        _log.warning("could not ask for a checkpoint: %s", error)


@contextmanager
def signals_stop(run_directory: Path) -> Iterator[None]:
    """SIGINT and SIGTERM ask the workers to checkpoint and end; seconds later, a second one ends this process at once.

    Not sooner: timeout(1) and some schedulers send a signal to a process and then again to all of its group.
    """
    asked = 0.0
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = time.monotonic()
            stop_path(run_directory).touch()
            print("stopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr, flush=True)
        elif time.monotonic() - asked > _SAME_WISH_SECONDS:
            for each, handler in previous.items():
                signal.signal(each, handler)
            os.kill(os.getpid(), number)

    for number in previous:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_stops(run_directory: Path) -> Iterator[None]:
    """In a worker process of its own: SIGTERM, as schedulers send it to every process, asks the whole run to end.

    Does nothing where a launching process has set its own handler, nor under Ray, which trains in a thread.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: stop_path(run_directory).touch())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
