"""Heartbeats: every worker notes its step in the run directory, so that one that waits can name who is missing."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from cluster.launch import Worker
from cluster.run_directory import HEARTBEATS
from common.files import read_json, write_json_atomic


class Heartbeat(NamedTuple):
    """What one worker last said of itself."""

    rank: int
    step: int
    """Completed updates; -1 before the first one of this process."""
    saved_unix_seconds: float
    """When it was last seen to write a checkpoint; 0: never."""
    pid: int
    unix_seconds: float


class Heartbeats:
    """The heartbeats of all workers: `heartbeats/rank-<r>.json`."""

    def __init__(self, run_directory: Path, worker: Worker):
        self._folder, self._worker = run_directory / HEARTBEATS, worker

    def write(self, step: int, saved_unix_seconds: float) -> None:
        """This worker's. Raises OSError where the storage refuses it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        heartbeat = Heartbeat(self._worker.rank, step, saved_unix_seconds, os.getpid(), time.time())
        write_json_atomic(self._path(self._worker.rank), heartbeat._asdict())

    def read(self, rank: int) -> Heartbeat | None:
        """A worker's newest; None if there is none, or it cannot be read."""
        try:
            found = Heartbeat(**read_json(self._path(rank)))
            return found._replace(
                step=int(found.step),
                saved_unix_seconds=float(found.saved_unix_seconds),
                unix_seconds=float(found.unix_seconds),
            )
        except (OSError, ValueError, TypeError):
            return None

    def suspects(self, step: int, silent_seconds: float) -> list[str]:
        """Who is behind `step`, or has said nothing for longer than that, one sentence for each."""
        found = []
        for rank in range(self._worker.world_size):
            heartbeat = self.read(rank)
            if heartbeat is None:
                found.append(f"rank {rank} has no heartbeat")
                continue
            who = f"rank {rank} (pid {heartbeat.pid})"
            silent = time.time() - heartbeat.unix_seconds
            if silent > silent_seconds:
                found.append(f"{who} is silent for {silent:.0f} s since step {heartbeat.step}")
            elif heartbeat.step < step:
                found.append(f"{who} is behind at step {heartbeat.step}")
        return found

    def _path(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.json"
