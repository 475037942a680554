"""A folder of verified files with a byte budget, shared by all processes of a node.

Files are named by their sha256 and appear by a rename after their content was verified. The least recently used ones
go when room is needed. A process that dies leaves nothing behind that others trust or wait for: locks are the
kernel's, and temporary files that nobody holds are removed.
"""

import errno
import fcntl
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NUM_LOCK_DIGITS = 3
_TOUCH_SECONDS = 1.0
_OWN_NAME = re.compile(r"[0-9a-f]{64}|\.tmp-[0-9a-f]{32}")
"""Files of the cache; all others in the folder are the user's, and neither counted nor evicted"""


class FileCache:
    """Files by sha256. Safe to use from many threads and processes at once, on a local file system."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """max_bytes: budget for all files together, those being written included."""
        self.root = root
        self.max_bytes = max_bytes
        self._locks = root / "locks"
        self._locks.mkdir(parents=True, exist_ok=True)
        self._touched: dict[str, float] = {}
        self._touched_lock = threading.Lock()

    def path(self, sha256: str) -> Path:
        """Where a file lies or would lie."""
        return self.root / sha256

    def get(self, sha256: str, num_bytes: int, fetch: Callable[[BinaryIO], None]) -> Path:
        """The path of a file, written by `fetch` if it is not there; one process fetches, others wait for it.

        fetch gets an empty open file and must leave exactly the named content, verified, or raise; then nothing is
        kept. Raises ValueError if the file is larger than the budget. The file may be evicted at any later time.
        """
        path = self.path(sha256)
        if self._use(path, num_bytes):
            return path
        if num_bytes > self.max_bytes:
            raise ValueError(
                f"a shard of {num_bytes} bytes does not fit into the cache of {self.max_bytes} bytes; raise the budget"
            )
        with _locked(self._locks / sha256[:_NUM_LOCK_DIGITS]):
            if self._use(path, num_bytes):
                return path
            with self._room(num_bytes) as temporary:
                self._write(temporary, fetch)
                # A listing may miss a file that is renamed meanwhile, and its bytes would not be counted.
                with _locked(self.root / ".lock"):
                    os.replace(temporary, path)
        return path

    def _write(self, temporary: Path, fetch: Callable[[BinaryIO], None]) -> None:
        try:
            with open(temporary, "r+b") as file:
                fetch(file)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not is_of_this_disk(error):
                raise
            raise OSError(
                error.errno,
                f"a shard cannot be kept in the cache {self.root}: {error.strerror}; make room there or give another "
                "folder ($RAYDDPM_CACHE; for a run: data.cache_folder)",
            ) from None

    def discard(self, sha256: str) -> None:
        """Remove a file found damaged."""
        self.path(sha256).unlink(missing_ok=True)

    def total_bytes(self) -> int:
        """Bytes of all files, those being written included."""
        with _locked(self.root / ".lock"):
            return sum(size for _, size, _ in self._files())

    def _use(self, path: Path, num_bytes: int) -> bool:
        """Whether a whole file is there; marks it as used now."""
        try:
            if path.stat().st_size != num_bytes:
                path.unlink()
                return False
            now = time.monotonic()
            with self._touched_lock:
                if now - self._touched.get(path.name, -_TOUCH_SECONDS) < _TOUCH_SECONDS:
                    return True
                self._touched[path.name] = now
        except FileNotFoundError:
            return False
        with suppress(OSError):  # a cache on a read-only disk serves what it has
            os.utime(path)
        return True

    @contextmanager
    def _room(self, num_bytes: int) -> Iterator[Path]:
        """A temporary file that counts with its final size from the start, within the budget."""
        temporary = self.root / f".tmp-{uuid.uuid4().hex}"
        # Held locked while it is written: a temporary file that can be locked belongs to a dead process. Who looks for
        # those has the folder's lock, and so never sees this one before it is locked.
        with _locked(self.root / ".lock"):
            held = open(temporary, "wb")  # noqa: SIM115 (closed below)
            fcntl.flock(held, fcntl.LOCK_EX)
        with held:
            try:
                while not self._reserve(held, num_bytes):
                    self._wait_for_another_writer(temporary)
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def _reserve(self, held: BinaryIO, num_bytes: int) -> bool:
        with _locked(self.root / ".lock"):
            files = sorted(self._files())
            total = sum(size for _, size, _ in files)
            for _, size, path in files:
                if total + num_bytes <= self.max_bytes:
                    break
                if not path.name.startswith(".tmp-") or _is_orphan(path):
                    path.unlink(missing_ok=True)
                    total -= size
            if total + num_bytes > self.max_bytes:
                return False
            held.truncate(num_bytes)
            return True

    def _wait_for_another_writer(self, own: Path) -> None:
        """Until a file being written is complete, or its writer dead; it can then make room."""
        # A temporary file without a size waits for room itself: waiting for it could be for ever.
        writing = (path for _, size, path in self._files() if path.name.startswith(".tmp-") and size and path != own)
        with suppress(FileNotFoundError, StopIteration), open(next(writing), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, size and path of each own file, temporary ones included. Exact only under the folder's lock."""
        found = []
        for path in self.root.iterdir():
            with suppress(FileNotFoundError):
                status = path.stat()
                if _OWN_NAME.fullmatch(path.name) and path.is_file():
                    found.append((status.st_mtime, status.st_size, path))
        return found


def is_of_this_disk(error: OSError) -> bool:
    """Whether an error says that this machine cannot store more: to fetch again would not help."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def cache_folder() -> Path:
    """The user's cache: $RAYDDPM_CACHE, or rayddpm in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("RAYDDPM_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayddpm"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)  # a user may empty the cache while it is used
    with open(path, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_orphan(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return False
    return True
