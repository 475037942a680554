"""A packed data set as an array of images: any sample is one positioned read, checked, then decoded."""

import bisect
import itertools
import threading
import zlib
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from data_pipeline.storage.codec import decode_into
from data_pipeline.storage.decoded import DecodedImages
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.index import ShardIndex, parse_index
from data_pipeline.storage.manifest import Manifest, ShardRecord

_MAX_INDEXED_SAMPLES = 4_000_000
"""Samples whose places are kept in memory, about 100 bytes each"""


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
