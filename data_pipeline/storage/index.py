"""The index of a shard: where each sample lies in the tar, and the checksum of its bytes."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.storage.codec import EXTENSIONS
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.manifest import ShardRecord
from data_pipeline.storage.tar_index import split_name, tar_members

INDEX_VERSION = 1


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


def index_of(path: Path, name: str) -> ShardIndex:
    """The index of a tar, from the tar itself; tar entries that are not images are passed over. ValueError."""
    rows: list[tuple[str, str, int, int, int]] = []
    with open(path, "rb") as file:
        for member in tar_members(path):
            key, extension = split_name(member.name)
            if extension in EXTENSIONS:
                file.seek(member.offset)
                rows.append((key, extension, member.offset, member.length, zlib.crc32(file.read(member.length))))
    keys, extensions, offsets, lengths, crc32 = zip(*rows, strict=True) if rows else ((),) * 5
    if len(set(keys)) != len(keys):
        raise ValueError(f"shard {name}: a key occurs twice")
    return ShardIndex(keys, extensions, np.array(offsets), np.array(lengths), np.array(crc32))


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
