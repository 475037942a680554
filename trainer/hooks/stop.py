"""How a run is asked to checkpoint or to end: signals, files, and notices that a machine will be taken away."""

import contextlib
import logging
import multiprocessing
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
from cluster.progress import has_trained
from cluster.run_directory import CHECKPOINT_REQUEST, STOP
from common.interrupt import handling_signals
from common.logs import as_json, as_line, say
from common.progress import LINE_START
from data_pipeline.loader import Batch
from trainer.engines.base import StepResult

_GO_ON, _CHECKPOINT, _STOP = 0, 1, 2
_log = logging.getLogger(__name__)
_signalled = threading.Event()
"""Whether a signal has asked this process to end the run. Signals belong to a process, and so does this."""


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
        self._answered_file = False
        self._cannot_look = False

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        request = torch.tensor(float(self._request()), device=self._worker.device)
        if self._worker.world_size > 1:
            dist.all_reduce(request, dist.ReduceOp.MAX)
        agreed = int(request.item())
        if agreed == _STOP:
            raise Stopped(step)
        if agreed == _CHECKPOINT:
            self._answered_notice = self._worker.notified()
            self._checkpoint(step)
            if self._worker.rank == 0:
                self._answer()

    def _request(self) -> int:
        if _signalled.is_set():
            return _STOP
        asked = self._look() if self._worker.rank == 0 else _GO_ON
        return max(asked, _CHECKPOINT if self._worker.notified() and not self._answered_notice else _GO_ON)

    def _look(self) -> int:
        """Looks at the storage at most four times a second: it may be a network folder, which may be away for a while.

        It ends nothing that a look fails: what training really needs of the storage, its checkpoints, says so itself.
        """
        now = time.monotonic()
        if now - self._looked < 0.25:
            return _GO_ON
        self._looked = now
        try:
            stop, checkpoint = self._stop_path.exists(), self._checkpoint_path.exists()
        except OSError as error:
            if not self._cannot_look:
                _log.warning("cannot see whether a stop is asked for, and look again: %s", error)
            self._cannot_look = True
            return _GO_ON
        self._cannot_look = False
        self._answered_file = self._answered_file and checkpoint
        return _STOP if stop else _CHECKPOINT if checkpoint and not self._answered_file else _GO_ON

    def _answer(self) -> None:
        """The request is met: its file goes. One that cannot be deleted is not met again."""
        self._answered_file = True
        try:
            self._checkpoint_path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("the checkpoint that was asked for is written, but %s", error)


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
def signals_stop(run_directory: Path, at_once: Callable[[], str], under_ray: bool = False) -> Iterator[None]:
    """SIGINT and SIGTERM ask the workers to checkpoint and end; a second one ends this process and its workers at once.

    While no step has been done since the workers were started, there is nothing to checkpoint, and perhaps no worker
    that looks: then the first one already raises KeyboardInterrupt. at_once: see `handling_signals`.
    """

    def last_line() -> str:
        return as_line(at_once(), logging.WARNING)

    try:
        with handling_signals(lambda number: _ask_to_stop(run_directory, under_ray), last_line):
            yield
    finally:
        _signalled.clear()


def stop_signalled() -> bool:
    """Whether a signal has asked this process to end the run."""
    return _signalled.is_set()


def _ask_to_stop(run_directory: Path, under_ray: bool) -> None:
    _signalled.set()
    if not has_trained(run_directory):
        raise KeyboardInterrupt
    try:
        stop_path(run_directory).touch()
    except OSError as error:
        how = "they are ended without a checkpoint" if under_ray else "they are sent a signal"
        _say(f"cannot write {stop_path(run_directory)} ({error.strerror}), by which workers are asked to stop: {how}")
        if under_ray:
            raise KeyboardInterrupt from error
        for process in multiprocessing.active_children():
            process.terminate()
    _say("stopping after this step, with a checkpoint; once more to stop at once")


def _say(line: str) -> None:
    say(f"{LINE_START if sys.stderr.isatty() and not as_json() else ''}{line}", logging.WARNING)


@contextmanager
def sigterm_stops(run_directory: Path) -> Iterator[None]:
    """In a worker process of its own: SIGTERM, as schedulers send it to every process, asks the whole run to end.

    Does nothing where a launching process has set its own handler, nor under Ray, which trains in a thread.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        _signalled.set()
        with contextlib.suppress(OSError):  # a full disk; the workers agree on the stop without the file
            stop_path(run_directory).touch()

    signal.signal(signal.SIGTERM, ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # blocked in a process that was just started
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
