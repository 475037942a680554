"""Claims: one evaluator at a time works on an evaluation, and a dead one's work is taken over.

A claim is a file created with O_EXCL that holds its owner's token and is renewed by a heartbeat. It is stale when the
heartbeat is old, or at once when its process is known to be dead. Should two evaluators still meet (clocks apart by
more than the limit), the work is done twice and the same result is written twice: claims save time, the atomic
result file keeps the count.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.storage import write_json_atomic
from eval.errors import LostClaimError

STALE_SECONDS = 90.0
_HEARTBEATS_PER_LIMIT = 6


@dataclass
class Claim:
    """A held claim; `with claim:` renews it in a thread and gives it up at the end."""

    path: Path
    token: str
    attempt: int
    """1 for the first evaluator, one more for each that died on the same evaluation."""
    stale_seconds: float

    def check(self) -> None:
        """Raises LostClaimError if another evaluator has taken over."""
        if _read(self.path).get("token") != self.token:
            raise LostClaimError(f"{self.path.name} was taken over by another evaluator")

    def renew(self) -> None:
        self.check()
        write_json_atomic(self.path, _content(self.token, self.attempt))

    def release(self) -> None:
        if _read(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Claim":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.release()

    def _beat(self) -> None:
        while not self._stop.wait(self.stale_seconds / _HEARTBEATS_PER_LIMIT):
            try:
                self.renew()
            except LostClaimError:
                return  # check(), called between blocks, tells the evaluation
            except OSError:
                continue  # a full disk or a network folder away: tried again, well before the limit


def try_claim(path: Path, stale_seconds: float = STALE_SECONDS) -> Claim | None:
    """The claim, or None while another living evaluator has it. Takes a stale one over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _read(path)
    attempt = 1
    if found:
        if not _is_stale(found, stale_seconds) or not _remove_stale(path, found):
            return None
        attempt = int(found.get("attempt", 0)) + 1
    token = uuid.uuid4().hex
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as file:
        json.dump(_content(token, attempt), file)
    return Claim(path, token, attempt, stale_seconds)


def held_checkpoints(run_directory: Path, stale_seconds: float = STALE_SECONDS) -> set[str]:
    """Names of checkpoints that an evaluation holds right now: retention must leave them."""
    return {
        path.parent.name
        for path in (run_directory / "evals").glob("*/*.claim")
        if (found := _read(path)) and not _is_stale(found, stale_seconds)
    }


@contextmanager
def holding(path: Path, stale_seconds: float = STALE_SECONDS) -> Iterator[Claim | None]:
    """`try_claim` as a context: None, and nothing held, while another evaluator has it."""
    claim = try_claim(path, stale_seconds)
    if claim is None:
        yield None
        return
    with claim:
        yield claim


def _content(token: str, attempt: int) -> dict[str, Any]:
    return {"token": token, "attempt": attempt, "heartbeat": time.time(), "machine": _machine(), "pid": os.getpid()}


def _machine() -> str:
    """Host and process namespace: a pid means something only inside both."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _read(path: Path) -> dict[str, Any]:
    """The claim file's content; empty if there is none. One that is just being created counts from its file time."""
    try:
        status, text = path.stat(), path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        return dict(json.loads(text))
    except ValueError:
        return {"token": "", "heartbeat": status.st_mtime}


def _is_stale(content: dict[str, Any], stale_seconds: float) -> bool:
    if time.time() - float(content.get("heartbeat", 0.0)) > stale_seconds:
        return True
    return content.get("machine") == _machine() and not _is_alive(int(content.get("pid", -1)))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_stale(path: Path, found: dict[str, Any]) -> bool:
    """Rename the stale claim away; False if somebody else was faster. One rename wins: a file is renamed once."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        if _read(aside).get("token") == found.get("token"):
            return True
        # Between our look and our rename another evaluator took over: give its claim back.
        os.link(aside, path)
        return False
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
