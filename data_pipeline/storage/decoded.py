"""Decoded images in memory that the processes of a node share, so that a small set is decoded once.

The memory is a file in /dev/shm held by shared locks; the last process to close removes it, and what killed processes
left is cleared by the next that opens it. Where there is no room, each process keeps images of its own.
"""

import fcntl
import logging
import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np

_log = logging.getLogger(__name__)
_SHARED_MEMORY = Path("/dev/shm")


class DecodedImages:
    """(N, H, W, C) uint8 images, and whether each is there yet. All processes would add the same bytes."""

    def __init__(self, name: str, shape: tuple[int, int, int, int], root: Path = _SHARED_MEMORY) -> None:
        """name: identity of the data set, fit for a file name; root: a memory-backed folder."""
        self._descriptor = -1
        self._path: Path | None = None
        num_pixels = int(np.prod(shape))
        memory = self._shared(name, num_pixels + shape[0], root)
        if memory is None:
            memory = np.zeros(num_pixels + shape[0], dtype=np.uint8)
        self._images = memory[:num_pixels].reshape(shape)
        self._is_there = memory[num_pixels:]

    @property
    def is_shared(self) -> bool:
        """Whether other processes see these images too."""
        return self._path is not None

    def copy_to(self, index: int, out: np.ndarray) -> bool:
        """Copy image `index` to `out`, (H, W, C) uint8, if it is there; returns whether it was."""
        if not self._is_there[index]:
            return False
        out[...] = self._images[index]
        return True

    def add(self, index: int, image: np.ndarray) -> None:
        """Keep a decoded image."""
        self._images[index] = image
        self._is_there[index] = 1

    def close(self) -> None:
        """Let go of the memory; the last process removes it. Nothing may be read afterwards."""
        if self._path is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink(missing_ok=True)
        except BlockingIOError:
            # Others still use it. The mapping has a descriptor of its own, which would keep the lock.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._path = None
        os.close(self._descriptor)

    def _shared(self, name: str, num_bytes: int, root: Path) -> np.ndarray | None:
        try:
            folder = _private_folder(root)
            _clear_leftovers(folder)
            path = folder / name
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _log.info("no shared memory for decoded images: %s", error)
            return None
        try:
            _take(descriptor, num_bytes)
            mapped = mmap.mmap(descriptor, num_bytes)
        except (OSError, ValueError) as error:
            _log.info("no shared memory for %d bytes of decoded images: %s", num_bytes, error)
            os.close(descriptor)
            return None
        self._descriptor, self._path = descriptor, path
        return np.frombuffer(mapped, dtype=np.uint8)


def _private_folder(root: Path) -> Path:
    """A folder that no other user can write to. OSError."""
    folder = root / f"rayddpm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to another user or can be written by one")
    return folder


def _clear_leftovers(folder: Path) -> None:
    """Remove the memory of processes that were killed: nobody holds its lock."""
    for path in folder.iterdir():
        with suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


def _take(descriptor: int, num_bytes: int) -> None:
    """Share the file, cleared first if nobody else holds it; its whole size is allocated now, or OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whatever is in it was left by processes that were killed.
        os.ftruncate(descriptor, 0)
        # A sparse file would kill the process, by SIGBUS, when the memory runs out later.
        os.posix_fallocate(descriptor, 0, num_bytes)
    except BlockingIOError:
        pass
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_size != num_bytes:
        raise ValueError("another process is clearing it")
