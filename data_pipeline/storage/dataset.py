"""A packed data set as an array of images: any sample is one positioned read, checked, then decoded."""

import bisect
import functools
import itertools
import json
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipeline.storage.codec import EXTENSIONS, decode_into
from data_pipeline.storage.decoded import DecodedImages
from data_pipeline.storage.manifest import Manifest, ShardRecord

INDEX_VERSION = 1
_MAX_OPEN_FILES = 64
_MAX_INDEXED_SAMPLES = 4_000_000
"""Samples whose places are kept in memory, about 100 bytes each"""


class DamagedDataError(ValueError):
    """Stored data is missing, truncated or not what was packed; the message names the shard, and the sample's key."""


class ShardFiles(Protocol):
    """Where shards and their indexes lie: a local folder, or a cache before a server."""

    def read(self, record: ShardRecord, offset: int, num_bytes: int) -> bytes:
        """Bytes of a tar, fewer if it is too short. DamagedDataError naming the shard if it cannot be had."""

    def read_index(self, record: ShardRecord) -> bytes:
        """The whole index of a shard. DamagedDataError naming the shard if it cannot be had."""

    def discard(self, record: ShardRecord) -> bool:
        """Drop a copy found damaged; True if another can be fetched."""

    def prefetch(self, records: list[ShardRecord]) -> None:
        """Start to fetch these shards, in this order, without waiting."""

    def close(self) -> None:
        """Stop what runs in the background."""


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


@dataclass(frozen=True)
class ShardIndex:
    """Places of a shard's samples, in the order of the tar."""

    keys: tuple[str, ...]
    extensions: tuple[str, ...]
    offsets: np.ndarray
    """(samples,) int64, first byte in the tar"""
    lengths: np.ndarray
    """(samples,) int64, bytes"""
    crc32: np.ndarray
    """(samples,) int64, zlib.crc32 of the bytes"""

    def to_json(self, shard_name: str) -> str:
        """The text of the index file: the same bytes for the same shard."""
        columns = {
            "format_version": INDEX_VERSION,
            "shard": shard_name,
            "keys": self.keys,
            "extensions": self.extensions,
            "offsets": self.offsets.tolist(),
            "lengths": self.lengths.tolist(),
            "crc32": self.crc32.tolist(),
        }
        return json.dumps(columns, sort_keys=True, separators=(",", ":")) + "\n"


def parse_index(text: bytes, record: ShardRecord) -> ShardIndex:
    """The index in a JSON text. DamagedDataError naming the shard if it does not describe that shard."""
    try:
        content = json.loads(text)
        if content["format_version"] != INDEX_VERSION or content["shard"] != record.name:
            raise ValueError(f"it is an index of {content['shard']!r}, version {content['format_version']!r}")
        offsets, lengths, crc32 = (np.array(content[name], dtype=np.int64) for name in ("offsets", "lengths", "crc32"))
        index = ShardIndex(tuple(content["keys"]), tuple(content["extensions"]), offsets, lengths, crc32)
        _check_index(index, record)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DamagedDataError(f"index of shard {record.name} is damaged: {error}; pack the data set again") from error
    return index


class Dataset:
    """Random access to the samples of a manifest; safe to use from many threads."""

    def __init__(self, manifest: Manifest, files: ShardFiles, decoded: DecodedImages | None = None) -> None:
        """decoded: memory for all images, if they shall be decoded once."""
        self.manifest = manifest
        self._files = files
        self._decoded = decoded
        self._starts = [0, *itertools.accumulate(manifest.shard_sizes)]
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._num_indexed = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.manifest.num_samples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every sample."""
        return (self.manifest.image_size, self.manifest.image_size, self.manifest.image_channels)

    def read(self, index: int) -> np.ndarray:
        """Sample `index` in [0, N): (H, W, C) uint8. DamagedDataError naming shard and key; IndexError."""
        image = np.empty(self.image_shape, dtype=np.uint8)
        self.read_into(index, image)
        return image

    def read_into(self, index: int, out: np.ndarray) -> None:
        """The same into `out`, (H, W, C) uint8 of any strides."""
        shard, row = self._place(index)
        if self._decoded is not None and self._decoded.copy_to(index, out):
            return
        shard_index = self._shard_index(shard)
        data = self._stored_bytes(shard, row, shard_index)
        try:
            decode_into(data, shard_index.extensions[row], out)
        except ValueError as error:
            name = self.manifest.shards[shard].name
            raise DamagedDataError(
                f"sample {shard_index.keys[row]!r} of shard {name} cannot be decoded: {error}; pack the data set again"
            ) from error
        if self._decoded is not None:
            self._decoded.add(index, out)

    def read_bytes(self, index: int) -> tuple[bytes, str]:
        """The stored bytes of a sample, their checksum verified, and the extension that says what they are."""
        shard, row = self._place(index)
        shard_index = self._shard_index(shard)
        return self._stored_bytes(shard, row, shard_index), shard_index.extensions[row]

    def key(self, index: int) -> str:
        """WebDataset key of a sample."""
        shard, row = self._place(index)
        return self._shard_index(shard).keys[row]

    def shards_of(self, indices: np.ndarray) -> np.ndarray:
        """Shard number of each sample: (...) int64 -> (...) int64."""
        return np.searchsorted(self._starts, indices, side="right") - 1

    def prefetch(self, shards: np.ndarray) -> None:
        """Start to fetch shards by number, in this order; returns at once."""
        self._files.prefetch([self.manifest.shards[shard] for shard in shards])

    def close(self) -> None:
        """Stop background work; reading afterwards is an error."""
        self._files.close()
        if self._decoded is not None:
            self._decoded.close()
            self._decoded = None

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample index must lie in [0, {len(self) - 1}], got {index}")
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def _stored_bytes(self, shard: int, row: int, index: ShardIndex) -> bytes:
        """A damaged copy of a remote shard is fetched once more, then the sample is named."""
        record = self.manifest.shards[shard]
        length = int(index.lengths[row])
        for _ in range(2):
            data = self._files.read(record, int(index.offsets[row]), length)
            if len(data) == length and zlib.crc32(data) == index.crc32[row]:
                return data
            if not self._files.discard(record):
                break
        raise DamagedDataError(
            f"sample {index.keys[row]!r} of shard {record.name} is damaged: its bytes are not those that were packed; "
            "restore the shard or pack the data set again"
        )

    def _shard_index(self, shard: int) -> ShardIndex:
        with self._lock:
            if shard in self._indexes:
                self._indexes.move_to_end(shard)
                return self._indexes[shard]
        record = self.manifest.shards[shard]
        index = parse_index(self._files.read_index(record), record)
        with self._lock:
            if shard not in self._indexes:
                self._indexes[shard] = index
                self._num_indexed += len(index.keys)
            while self._num_indexed > _MAX_INDEXED_SAMPLES and len(self._indexes) > 1:
                self._num_indexed -= len(self._indexes.popitem(last=False)[1].keys)
        return index


def _check_index(index: ShardIndex, record: ShardRecord) -> None:
    lengths = {len(column) for column in (index.keys, index.extensions, index.offsets, index.lengths, index.crc32)}
    if lengths != {record.samples}:
        raise ValueError(f"columns of {sorted(lengths)} entries for {record.samples} samples")
    if len(set(index.keys)) != record.samples:
        raise ValueError("a key occurs twice")
    if not set(index.extensions) <= set(EXTENSIONS):
        raise ValueError(f"extensions {sorted(set(index.extensions))}, allowed are {', '.join(EXTENSIONS)}")
    ends = index.offsets + index.lengths
    if index.offsets.min() < 512 or index.lengths.min() < 1 or ends.max() > record.bytes:
        raise ValueError("a sample lies outside the shard")
