"""Leases: one process at a time trains a run, or works on an evaluation, and a dead one's work is taken over.

A lease is a file created with O_EXCL that names its owner; its heartbeat is the file's time. It is stale when that is
old by the storage's own clock and does not move while we watch, or at once when its process is known to be dead. Owners
check it before they commit: one that was taken for dead, and lost its lease, writes nothing more.
"""

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cluster.lease_file import LeaseFile, create_lease_file, opened_lease_file, read_lease_file, remove_lease_file


class LostLeaseError(RuntimeError):
    """Another process has taken the work over; the holder of the old lease must stop without writing anything."""


STALE_SECONDS = 90.0
_HEARTBEATS_PER_LIMIT = 12
_WATCHED_HEARTBEATS = 2
_log = logging.getLogger(__name__)


@dataclass
class Lease:
    """A held lease; `with lease:` renews it in a thread and gives it up at the end."""

    path: Path
    token: str
    attempt: int
    """1 for the first owner, one more for each that died holding the lease."""
    stale_seconds: float

    def check(self) -> None:
        """Raises LostLeaseError if another process has taken over.

        A file that cannot be read for a moment, as on a network folder, is tried again; OSError after stale_seconds.
        """
        deadline = time.monotonic() + self.stale_seconds
        while True:
            try:
                found = read_lease_file(self.path)
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise
                _log.warning("%s cannot be read, tried again: %s", self.path, error)
                time.sleep(min(1.0, self.stale_seconds / _HEARTBEATS_PER_LIMIT))
        self._require_ours(found)

    def renew(self) -> None:
        """Set the time of the lease's file. Raises LostLeaseError if another process has taken over, or OSError."""
        with opened_lease_file(self.path) as opened:
            self._require_ours(opened and opened[1])
            assert opened is not None
            os.utime(opened[0])

    def release(self) -> None:
        """Give the lease up, if it is still ours."""
        try:
            remove_lease_file(self.path, lambda found: found.token == self.token)
        except OSError as error:
            _log.warning("%s stays until its heartbeat is old: %s", self.path, error)

    def __enter__(self) -> "Lease":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="lease-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.release()

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self.stale_seconds / _HEARTBEATS_PER_LIMIT):
            # Of a lost lease check(), called before each commit, tells the owner. A network folder that is away is
            # tried again, well before the limit.
            with contextlib.suppress(LostLeaseError, OSError):
                self.renew()

    def _require_ours(self, found: LeaseFile | None) -> None:
        if found is None or found.token != self.token:
            raise LostLeaseError(f"{self.path.name} was taken over by another process")


def try_lease(path: Path, stale_seconds: float = STALE_SECONDS) -> Lease | None:
    """The lease, or None while another living process has it. Takes a stale one over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found = read_lease_file(path)
    if found and not (_is_stale(path, found, stale_seconds) and remove_lease_file(path, found.is_unchanged)):
        return None
    lease = Lease(path, uuid.uuid4().hex, found.attempt + 1 if found else 1, stale_seconds)
    return lease if create_lease_file(path, lease.token, lease.attempt) else None


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
    """Whether a living process holds the lease. True also if the file cannot be read: it may well be held."""
    try:
        found = read_lease_file(path)
    except OSError:
        return True
    if found is None:
        return False
    return found.is_alive if found.is_alive is not None else not _is_old(path, found, stale_seconds)


def _is_stale(path: Path, found: LeaseFile, stale_seconds: float) -> bool:
    """Whether its process is known to be dead, or its heartbeat is old and does not move for the time of two."""
    if found.is_alive is not False and not _is_old(path, found, stale_seconds):
        return False
    deadline = time.monotonic() + _WATCHED_HEARTBEATS * stale_seconds / _HEARTBEATS_PER_LIMIT
    now: LeaseFile | None = found
    while now is not None and now.is_alive is not False and time.monotonic() < deadline:
        time.sleep(min(0.1, stale_seconds / _HEARTBEATS_PER_LIMIT))
        with contextlib.suppress(OSError):
            now = read_lease_file(path)
            if not found.is_unchanged(now):
                return False
    return True


def _is_old(path: Path, found: LeaseFile, stale_seconds: float) -> bool:
    # A heartbeat of the future tells of a clock that was put back, and not of life.
    return abs(found.age_seconds(path.parent)) > stale_seconds
