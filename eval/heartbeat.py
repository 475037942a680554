"""Signs of life: each evaluator says below the storage folder that it runs and what it works on."""

import os
import socket
import time
from pathlib import Path
from typing import Any

from cluster.storage import read_json, write_json_atomic
from eval.backlog import Job, held_checkpoints

ALIVE_SECONDS = 60.0
_IDLE_WRITE_SECONDS = 5.0


class Heartbeat:
    """One evaluator's file, written at each evaluation and every few seconds in between."""

    def __init__(self, storage: Path):
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._path = _folder(storage) / f"{self._name}.json"
        self._written = 0.0

    def write(self, job: Job | None) -> None:
        """job: what is worked on from now on; None: it waits."""
        if job is None and time.monotonic() - self._written < _IDLE_WRITE_SECONDS:
            return
        doing = job and {"run": job.run_directory.name, "step": job.step, "protocol": job.protocol.name}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(self._path, {"evaluator": self._name, "time": time.time(), "doing": doing})
        self._written = 0.0 if job else time.monotonic()

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def living_evaluators(storage: Path, runs: list[Path], now_seconds: float) -> list[dict[str, Any]]:
    """Evaluators that wrote lately, or hold a lease that is renewed: {"evaluator", "time", "doing"}."""
    held = {(run.name, name) for run in runs for name in held_checkpoints(run)}
    living = []
    for path in sorted(_folder(storage).glob("*.json")):
        try:
            found = read_json(path)
        except (OSError, ValueError):
            continue  # just being replaced or removed
        doing = found["doing"]
        busy = doing and any(run == doing["run"] and f"-{doing['step']:08d}-" in name for run, name in held)
        if busy or now_seconds - found["time"] < ALIVE_SECONDS:
            living.append(found)
    return living


def _folder(storage: Path) -> Path:
    return storage / "evaluators"
