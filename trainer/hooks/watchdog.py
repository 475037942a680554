"""The watchdog: a worker that makes no step ends itself, after saying who is stuck and where (its stacks).

Without it a hung collective waits for its timeout at best, and a stopped process for ever. Every worker notes its step
in `heartbeats/` of the run directory, so that the one that notices can name the one that is missing.
"""

import faulthandler
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.launch import Worker
from common.files import write_json_atomic
from data_pipeline.loader import Batch
from trainer.engines.base import StepResult

EXIT_CODE = 70
_BEATS_PER_TIMEOUT = 10
_SAVES_TIMEOUTS = 10
_log = logging.getLogger(__name__)


class Watchdog:
    """A hook that must be called every `timeout_seconds`; else the process writes its stacks and exits with code 70.

    The launcher then restarts the workers. The clock starts with the first step that ends, because the first may
    compile for long; before that the launcher's own start timeout applies. While rank 0 writes a checkpoint that the
    others may be waiting for, such as the last, the clock stands still, up to ten times that long: storage may be slow,
    and a save is no hang.
    """

    def __init__(self, run_directory: Path, worker: Worker, timeout_seconds: float, is_saving: Callable[[], bool]):
        self._heartbeats = run_directory / "heartbeats"
        self._stacks = run_directory / "stacks"
        self._worker, self._timeout_seconds, self._is_saving = worker, timeout_seconds, is_saving
        self._step, self._stepped, self._saved_unix_seconds = -1, time.monotonic(), 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._heartbeats.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        self._step, self._stepped = step, time.monotonic()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        ended = False
        while not ended:
            try:
                self._beat()
            except OSError as error:
                _log.warning("heartbeat not written: %s", error)
            if self._is_stuck():
                self._end()
            ended = self._stop.wait(self._timeout_seconds / _BEATS_PER_TIMEOUT)

    def _beat(self) -> None:
        now = time.time()
        if self._is_saving():
            self._saved_unix_seconds = now
        beat = {
            "rank": self._worker.rank,
            "step": self._step,
            "saved_unix_seconds": self._saved_unix_seconds,  # when it was last seen to write a checkpoint; 0: never
            "pid": os.getpid(),
            "unix_seconds": now,
        }
        write_json_atomic(self._heartbeats / f"rank-{self._worker.rank}.json", beat)

    def _is_stuck(self) -> bool:
        idle_seconds = time.monotonic() - self._stepped
        if self._step < 0 or idle_seconds < self._timeout_seconds:
            return False  # without a look at the storage
        beat = self._read_beat(0)
        saved_seconds_ago = time.time() - beat["saved_unix_seconds"] if beat else math.inf
        return saved_seconds_ago > self._timeout_seconds or idle_seconds > _SAVES_TIMEOUTS * self._timeout_seconds

    def _read_beat(self, rank: int) -> dict[str, Any] | None:
        try:
            return json.loads((self._heartbeats / f"rank-{rank}.json").read_text())
        except (OSError, ValueError):
            return None

    def _end(self) -> None:
        report = f"{self._accusation()}; stacks of rank {self._worker.rank} are in {self._stacks}"
        self._stacks.mkdir(exist_ok=True)
        with open(self._stacks / f"rank-{self._worker.rank}.txt", "w") as file:
            file.write(f"{report}\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        _log.error("%s", report)
        os._exit(EXIT_CODE)

    def _accusation(self) -> str:
        """Who is behind, or has fallen silent, as far as the heartbeats tell."""
        silent_seconds = 3 * self._timeout_seconds / _BEATS_PER_TIMEOUT
        suspects = []
        for rank in range(self._worker.world_size):
            beat = self._read_beat(rank)
            if beat is None:
                suspects.append(f"rank {rank} has no heartbeat")
                continue
            silent = time.time() - beat["unix_seconds"]
            if silent > silent_seconds:
                suspects.append(
                    f"rank {rank} (pid {beat['pid']}) is silent for {silent:.0f} s since step {beat['step']}"
                )
            elif beat["step"] < self._step:
                suspects.append(f"rank {rank} (pid {beat['pid']}) is behind at step {beat['step']}")
        who = "; ".join(suspects) or "all ranks are alive and at this step"
        return f"no step for {self._timeout_seconds:.0f} s after step {self._step}: {who}"
