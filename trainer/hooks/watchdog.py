"""The watchdog: a worker that makes no step ends itself, after saying who is stuck and where (its stacks).

Without it a hung collective waits for its timeout at best, and a stopped process for ever.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cluster.launch import Worker
from cluster.run_directory import STACKS
from data_pipeline.loader import Batch
from trainer.engines.base import StepResult
from trainer.hooks.heartbeats import Heartbeats

EXIT_CODE = 70
_HEARTBEATS_PER_TIMEOUT = 10
_SAVES_TIMEOUTS = 10
_REPORT_SECONDS = 10.0
_log = logging.getLogger(__name__)


class Watchdog:
    """A hook that must be called every `timeout_seconds`; else the process writes its stacks and exits with code 70.

    The launcher then restarts the workers. The clock starts with the first step that ends, because the first may
    compile for long; before that the launcher's own start timeout applies. While rank 0 writes a checkpoint that the
    others may be waiting for, such as the last, the clock stands still, up to ten times that long: storage may be slow,
    and a save is not a hang.

    The process ends whatever its storage does, which may be what it hangs on: files are read and written in threads of
    their own, and the clock waits for none of them.
    """

    def __init__(self, run_directory: Path, worker: Worker, timeout_seconds: float, is_saving: Callable[[], bool]):
        self._heartbeats, self._stacks = Heartbeats(run_directory, worker), run_directory / STACKS
        self._worker, self._timeout_seconds, self._is_saving = worker, timeout_seconds, is_saving
        self._step, self._stepped, self._saved_unix_seconds = -1, time.monotonic(), 0.0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, name="watchdog", daemon=True),
            threading.Thread(target=self._keep_heartbeat, name="heartbeat", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        self._step, self._stepped = step, time.monotonic()

    def close(self) -> None:
        """Watch no more."""
        self._stop.set()
        for thread in self._threads:
            # One may be caught in a call to the storage, which must not keep the process from ending.
            thread.join(_REPORT_SECONDS)

    def _keep_heartbeat(self) -> None:
        """Write this worker's heartbeat, and look at rank 0's, which says when it wrote a checkpoint."""
        ended = False
        while not ended:
            try:
                self._heartbeats.write(self._step, self._saved_unix_seconds)
            except OSError as error:
                _log.warning("heartbeat not written: %s", error)
            if self._worker.rank > 0 and (first := self._heartbeats.read(0)) is not None:
                self._saved_unix_seconds = first.saved_unix_seconds
            ended = self._stop.wait(self._timeout_seconds / _HEARTBEATS_PER_TIMEOUT)

    def _watch(self) -> None:
        while not self._stop.wait(self._timeout_seconds / _HEARTBEATS_PER_TIMEOUT):
            if self._is_saving():
                self._saved_unix_seconds = time.time()
            if self._is_stuck():
                self._end()

    def _is_stuck(self) -> bool:
        idle_seconds = time.monotonic() - self._stepped
        if self._step < 0 or idle_seconds < self._timeout_seconds:
            return False
        saved_seconds_ago = time.time() - self._saved_unix_seconds
        return saved_seconds_ago > self._timeout_seconds or idle_seconds > _SAVES_TIMEOUTS * self._timeout_seconds

    def _end(self) -> None:
        try:
            reporting = threading.Thread(target=self._report, name="watchdog-report", daemon=True)
            reporting.start()
            reporting.join(_REPORT_SECONDS)
        finally:
            os._exit(EXIT_CODE)

    def _report(self) -> None:
        silent_seconds = 3 * self._timeout_seconds / _HEARTBEATS_PER_TIMEOUT
        who = "; ".join(self._heartbeats.suspects(self._step, silent_seconds))
        report = (
            f"no step for {self._timeout_seconds:.0f} s after step {self._step}: "
            f"{who or 'all ranks are alive and at this step'}"
        )
        path = self._stacks / f"rank-{self._worker.rank}.txt"
        _log.error("%s; stacks of rank %d go to %s", report, self._worker.rank, path)
        try:
            self._stacks.mkdir(exist_ok=True)
            with open(path, "w") as file:
                file.write(f"{report}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            _log.error("stacks not written: %s", error)
            faulthandler.dump_traceback(all_threads=True)  # to stderr
