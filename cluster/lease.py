"""Leases: one process at a time trains a run, or works on an evaluation, and a dead one's work is taken over.

A lease is a file created with O_EXCL that holds its owner's token and is renewed by a heartbeat. It is stale when the
heartbeat is old and does not move while we watch (clocks of machines differ, and are put forward), or at once when its
process is known to be dead. Owners check it before they commit: one that was taken for dead, and lost its lease, writes
nothing more.
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

from common.files import write_json_atomic


class LostLeaseError(RuntimeError):
    """Another process has taken the work over; the holder of the old lease must stop without writing anything."""


STALE_SECONDS = 90.0
_HEARTBEATS_PER_LIMIT = 12
_WATCHED_HEARTBEATS = 2


@dataclass
class Lease:
    """A held lease; `with lease:` renews it in a thread and gives it up at the end."""

    path: Path
    token: str
    attempt: int
    """1 for the first owner, one more for each that died holding the lease."""
    stale_seconds: float

    def check(self) -> None:
        """Raises LostLeaseError if another process has taken over."""
        if _read(self.path).get("token") != self.token:
            raise LostLeaseError(f"{self.path.name} was taken over by another process")

    def renew(self) -> None:
        self.check()
        write_json_atomic(self.path, _content(self.token, self.attempt))

    def release(self) -> None:
        if _read(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Lease":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
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
            except LostLeaseError:
                return  # check(), called before each commit, tells the owner
            except OSError:
                continue  # a full disk or a network folder away: tried again, well before the limit


def try_lease(path: Path, stale_seconds: float = STALE_SECONDS) -> Lease | None:
    """The lease, or None while another living process has it. Takes a stale one over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _read(path)
    attempt = 1
    if found:
        if not _is_stale(found, stale_seconds) or _beats(path, found, stale_seconds) or not _remove_stale(path, found):
            return None
        attempt = int(found.get("attempt", 0)) + 1
    token = uuid.uuid4().hex
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w") as file:
        json.dump(_content(token, attempt), file)
    return Lease(path, token, attempt, stale_seconds)


@contextmanager
def holding(path: Path, stale_seconds: float = STALE_SECONDS) -> Iterator[Lease | None]:
    """`try_lease` as a context: None, and nothing held, while another process has it."""
    lease = try_lease(path, stale_seconds)
    if lease is None:
        yield None
        return
    with lease:
        yield lease


def is_held(path: Path, stale_seconds: float = STALE_SECONDS) -> bool:
    """Whether a living process holds the lease."""
    found = _read(path)
    return bool(found) and not _is_stale(found, stale_seconds)


def _content(token: str, attempt: int) -> dict[str, Any]:
    return {"token": token, "attempt": attempt, "heartbeat": time.time(), "machine": _machine(), "pid": os.getpid()}


def _machine() -> str:
    """Host and process namespace: a pid means something only inside both."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _read(path: Path) -> dict[str, Any]:
    """The lease file's content; empty if there is none. One that is just being created counts from its file time."""
    try:
        status, text = path.stat(), path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    return content if isinstance(content, dict) and content else {"token": "", "heartbeat": status.st_mtime}


def _is_stale(content: dict[str, Any], stale_seconds: float) -> bool:
    # A heartbeat of the future tells of another clock, and not of life.
    if abs(time.time() - float(content.get("heartbeat", 0.0))) > stale_seconds:
        return True
    return _is_dead(content)


def _beats(path: Path, found: dict[str, Any], stale_seconds: float) -> bool:
    """Whether the lease is renewed while we watch it, for the time of two heartbeats; not if its process is dead."""
    deadline = time.monotonic() + _WATCHED_HEARTBEATS * stale_seconds / _HEARTBEATS_PER_LIMIT
    while not _is_dead(found) and time.monotonic() < deadline:
        if _read(path).get("heartbeat") != found.get("heartbeat"):
            return True
        time.sleep(min(0.1, stale_seconds / _HEARTBEATS_PER_LIMIT))
    return False


def _is_dead(content: dict[str, Any]) -> bool:
    """Known only on the holder's machine."""
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
    """Rename the stale lease away; False if somebody else was faster. One rename wins: a file is renamed once."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        if _read(aside).get("token") == found.get("token"):
            return True
        # Between our look and our rename another process took over: give its lease back.
        os.link(aside, path)
        return False
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
