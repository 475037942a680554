"""A lease's file: whom it names, whether that process lives, how old it is by the storage's clock, and its removal.

Whoever stalls between two system calls harms nobody: a heartbeat goes to the file that was read, whatever bears its
name by then, and a lease is removed only under a lock on that very file.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common.files import temporary_name
from common.process import boot_id, is_running, start_ticks

_LOCK_SECONDS = 2.0
"""Locks are held for some system calls; longer only by a process that is stopped in the middle."""


class LeaseFile(NamedTuple):
    """A lease file as it was read."""

    token: str
    """Of its owner; empty in a file that is just being created."""
    attempt: int
    is_alive: bool | None
    """Whether its process is alive; None: unknown, as on every other machine."""
    heartbeat_ns: int
    """The file's time."""

    def is_unchanged(self, now: "LeaseFile | None") -> bool:
        """Whether it is the same lease, and was not renewed."""
        return now is not None and (now.token, now.heartbeat_ns) == (self.token, self.heartbeat_ns)

    def age_seconds(self, folder: Path) -> float:
        """How long ago the heartbeat was; negative after the clock was put back. folder: that of the lease.

        By the clock of the machine that stores the files, which sets the time of a heartbeat and that of a new file.
        """
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                now = os.fstat(probe.fileno()).st_mtime
        except OSError:  # a full disk, or a reader that may not write there
            now = time.time()
        return now - self.heartbeat_ns / 1e9


def create_lease_file(path: Path, token: str, attempt: int) -> bool:
    """False if there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    pid = os.getpid()
    content = {"token": token, "attempt": attempt, "machine": _machine(), "pid": pid, "start_ticks": start_ticks(pid)}
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file)
    except OSError:  # a full disk
        path.unlink(missing_ok=True)
        raise
    return True


def read_lease_file(path: Path) -> LeaseFile | None:
    """None if there is none. Raises OSError if it cannot be read."""
    with opened_lease_file(path) as opened:
        return opened and opened[1]


@contextmanager
def opened_lease_file(path: Path, flags: int = os.O_RDONLY) -> Iterator[tuple[int, LeaseFile] | None]:
    """(descriptor, content); None if there is none. Opening a file has network file systems ask the server anew."""
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor, _parsed(os.pread(descriptor, 2**16, 0), os.fstat(descriptor))
    finally:
        os.close(descriptor)


def remove_lease_file(path: Path, is_right: Callable[[LeaseFile], bool]) -> bool:
    """Remove the lease if it is the right one; False if it is not, or another process was faster."""
    writable = os.access(path, os.W_OK)  # NFS locks only what is open for writing
    with opened_lease_file(path, os.O_RDWR if writable else os.O_RDONLY) as opened:
        if opened is None or (is_locked := _lock(opened[0])) is False:
            return False
        now = read_lease_file(path)  # another may bear the name by now
        if now is None or now.token != opened[1].token or not is_right(now):
            return False
        if is_locked:
            path.unlink(missing_ok=True)  # whoever removes it does so under this lock
            return True
        return _remove_without_lock(path, is_right)


def _remove_without_lock(path: Path, is_right: Callable[[LeaseFile], bool]) -> bool:
    """Take the file away, then look at what was taken; give it back if another process took over in between."""
    aside = temporary_name(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    try:
        moved = read_lease_file(aside)
        if moved is not None and is_right(moved):
            return True
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)


def _lock(descriptor: int) -> bool | None:
    """Lock a file until it is closed. False if another process keeps it locked, None if the storage has no locks."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES) and time.monotonic() < deadline:
                time.sleep(0.01)
                continue
            return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
        return True


def _parsed(text: bytes, status: os.stat_result) -> LeaseFile:
    """Fields of other types, in a damaged file, count as missing."""
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        content = {}
    token, attempt = content.get("token"), content.get("attempt")
    return LeaseFile(
        token if isinstance(token, str) else "",
        attempt if isinstance(attempt, int) else 0,
        _is_alive(content),
        status.st_mtime_ns,
    )


def _is_alive(content: dict[str, Any]) -> bool | None:
    """Whether the process of a lease is alive; None for one of another machine, or if the lease does not say."""
    pid, machine = content.get("pid"), content.get("machine")
    if machine is None or machine != _machine() or not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    begun, ticks = content.get("start_ticks"), start_ticks(pid)
    return is_running(pid) and (begun is None or ticks is None or begun == ticks)


def _machine() -> str | None:
    """Host, boot and process namespace: a pid means something only inside all of them. None where that is unknown.

    Hosts may share a name, and the first namespace of every host bears the same number.
    """
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    boot = boot_id()
    return f"{socket.gethostname()}/{boot}/{namespace}" if boot else None
