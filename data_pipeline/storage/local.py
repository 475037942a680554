"""Shards in a folder of this machine."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.manifest import ShardRecord

_MAX_OPEN_FILES = 64


class LocalFiles:
    """Shards in a folder of this machine. Raises FileNotFoundError or DamagedDataError at once if one is not whole.

    The shards last read stay open: with two threads more, each call that lets go of the interpreter lock is felt.
    """

    def __init__(self, root: Path, records: Iterable[ShardRecord]) -> None:
        self.root = root
        self._opened = functools.lru_cache(_MAX_OPEN_FILES)(lambda name: _OpenFile(root / name))
        for record in records:
            for name, num_bytes in ((record.name, record.bytes), (record.index_name, record.index_bytes)):
                path = root / name
                if not path.is_file():
                    raise FileNotFoundError(f"shard file {path} is missing; restore it or pack the data set again")
                if path.stat().st_size != num_bytes:
                    raise DamagedDataError(
                        f"shard file {path} has {path.stat().st_size} bytes, packed were {num_bytes}; "
                        "restore it or pack the data set again"
                    )

    def read(self, record: ShardRecord, offset: int, num_bytes: int) -> bytes:
        file = self._opened(record.name)  # lives while it is used, also if it leaves the cache meanwhile
        return os.pread(file.descriptor, num_bytes, offset)

    def read_index(self, record: ShardRecord) -> bytes:
        return (self.root / record.index_name).read_bytes()

    def discard(self, record: ShardRecord) -> bool:
        return False

    def prefetch(self, records: list[ShardRecord]) -> None:
        return

    def close(self) -> None:
        self._opened.cache_clear()


class _OpenFile:
    """A file for positioned reads, closed when nobody holds this object any more. FileNotFoundError."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def read_at(path: str | Path, offset: int, num_bytes: int) -> bytes:
    """One positioned read; fewer bytes at the end of the file. FileNotFoundError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, num_bytes, offset)
    finally:
        os.close(descriptor)
