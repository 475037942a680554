"""Signs of life: each evaluator holds a lease below the storage folder and says what it works on."""

import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from cluster.lease import Lease, is_held, try_lease
from common.files import read_json, write_json_atomic
from eval.backlog import Job

ALIVE_SECONDS = 60.0


class Heartbeat:
    """One evaluator's files. Its lease renews itself, however long an evaluation or a pause between two looks takes."""

    def __init__(self, storage: Path, only: str | None = None):
        """only: name of the one run that the evaluator looks after; none: all of them."""
        self._only = only
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        # Containers may share both.
        self._path = _folder(storage) / f"{self._name}-{uuid.uuid4().hex[:8]}.json"
        self._lease: Lease | None = None
        self._said_idle = False

    def write(self, job: Job | None) -> None:
        """job: what is worked on from now on; None: it waits."""
        if self._lease is None:
            _remove_dead(self._path.parent)
            self._lease = try_lease(_lease_path(self._path), ALIVE_SECONDS)
            if self._lease is not None:
                self._lease.__enter__()
        doing = job and {"run": job.run_directory.name, "step": job.step, "protocol": job.protocol.name}
        if doing is None and self._said_idle:
            return  # a poll every other second needs no writing
        self._said_idle = doing is None
        said = {"evaluator": self._name, "time": time.time(), "doing": doing, "only": self._only}
        write_json_atomic(self._path, said)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._said_idle = False
        if self._lease is not None:
            self._lease.__exit__(None)
            self._lease = None


def living_evaluators(storage: Path) -> list[dict[str, Any]]:
    """Evaluators whose lease is held: {"evaluator", "time" of the last change, "doing", "only"}."""
    living = []
    for path in sorted(_folder(storage).glob("*.json")):
        if is_held(_lease_path(path), ALIVE_SECONDS):
            try:
                living.append(read_json(path))
            except (OSError, ValueError):
                continue  # just being removed, or not ours
    return living


def _remove_dead(folder: Path) -> None:
    """What evaluators that were killed have left."""
    for path in folder.glob("*.json"):
        if not is_held(_lease_path(path), ALIVE_SECONDS):
            path.unlink(missing_ok=True)
            _lease_path(path).unlink(missing_ok=True)


def _lease_path(path: Path) -> Path:
    return path.with_suffix(".lease")


def _folder(storage: Path) -> Path:
    return storage / "evaluators"
