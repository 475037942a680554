"""Writing one shard: a WebDataset tar, its index, and what there is to say about it. Each file appears whole or not."""

import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import sha256_of_file, temporary_name, write_bytes_atomic
from data_pipeline.packing.framing import Framing, fits_unchanged, frame_array, frame_bytes
from data_pipeline.sources.source import Entry, Refusal, Sample, Source
from data_pipeline.storage.codec import EXTENSIONS, Encoding, decode_into, encode
from data_pipeline.storage.dataset import ShardIndex
from data_pipeline.storage.manifest import ShardRecord
from data_pipeline.storage.tar_index import split_name, tar_members

WORK_FOLDER = ".pack"
"""Notes of an unfinished pack inside its destination; gone when the manifest is there"""


@dataclass(frozen=True)
class Recipe:
    """All that decides the bytes of a shard, except the images."""

    framing: Framing
    encoding: Encoding
    jpeg_quality: int = 95
    keep_bytes: bool = False
    """Store JPEGs that need no change as they are"""

    def __post_init__(self) -> None:
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality must lie in [1, 100], got {self.jpeg_quality}")

    def describe(self) -> dict[str, Any]:
        """For the manifest: plain JSON, only what has an effect."""
        description: dict[str, Any] = {
            "crop": "centre square",
            "resize": "lanczos of Pillow" if self.framing.exact else "lanczos of torch",
            "background": self.framing.background,
            "encoding": self.encoding,
            "keep_bytes": self.keep_bytes,
        }
        return description | ({"jpeg_quality": self.jpeg_quality} if self.encoding == "jpg" else {})


@dataclass(frozen=True)
class ShardNotes:
    """What packing one shard came to; kept on disk beside the pixel sums so that a killed pack can go on."""

    shard: str
    """File name of the tar"""
    num_entries: int
    """Source images it was made from, refused ones included"""
    fingerprint: str
    """Hash of recipe, names and sizes of the entries: the work that this is the result of"""
    record: ShardRecord | None
    """None if every entry was refused"""
    refused: list[Refusal]
    source_sizes: dict[str, int]
    """Images by source size, such as "1024x768" """
    num_enlarged: int
    """Sources smaller than the target"""
    num_kept: int
    """Samples stored byte for byte"""


def fingerprint(entries: Sequence[Entry], recipe: Recipe) -> str:
    """Names the work of one shard: what is packed and how."""
    listing = [[entry.key, entry.name, entry.num_bytes] for entry in entries]
    return hashlib.sha256(json.dumps([asdict(recipe), listing]).encode()).hexdigest()


def write_shard(source: Source, entries: Sequence[Entry], recipe: Recipe, dest: Path, name: str) -> ShardNotes:
    """Pack entries into dest/name; images that cannot be right are refused with the reason, never guessed at."""
    from webdataset.writer import TarWriter  # slow to import, and only packing needs it

    shape = (recipe.framing.image_size, recipe.framing.image_size, recipe.framing.image_channels)
    work, temporary = dest / WORK_FOLDER, temporary_name(dest / WORK_FOLDER / name)
    pixel_sums, refused = np.zeros(shape, dtype=np.uint32), []
    sizes: Counter[str] = Counter()
    num_enlarged = num_kept = 0
    with open(temporary, "wb") as file:
        started = temporary.stat().st_mtime_ns
        with TarWriter(
            file, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False, format="PAX_FORMAT"
        ) as writer:
            for entry in entries:
                try:
                    sample = _read(source, entry)
                    stored = _Stored.of(sample.image, recipe)
                except ValueError as error:
                    refused.append(Refusal(entry.name, str(error)))
                    continue
                metadata = {} if sample.metadata is None else {"json": sample.metadata}
                writer.write({"__key__": entry.key, stored.extension: stored.data} | metadata)
                pixel_sums += stored.pixels
                sizes[f"{stored.source_size[0]}x{stored.source_size[1]}"] += 1
                num_enlarged += min(stored.source_size) < shape[0]
                num_kept += stored.kept
        file.flush()
        os.fsync(file.fileno())
    record = _publish(temporary, dest, name, len(entries) - len(refused))
    buffer = io.BytesIO()
    np.save(buffer, pixel_sums)
    write_bytes_atomic(work / (name + ".npy"), buffer.getvalue())
    work_id = fingerprint(entries, recipe)
    notes = ShardNotes(name, len(entries), work_id, record, refused, dict(sizes), num_enlarged, num_kept)
    write_bytes_atomic(work / (name + ".json"), json.dumps(asdict(notes)).encode())
    # The notes are as old as the first read, so that a source changed while it was being packed is packed again.
    os.utime(work / (name + ".json"), ns=(started, started))
    return notes


def finished_shard(
    source: Source, entries: Sequence[Entry], recipe: Recipe, dest: Path, name: str
) -> ShardNotes | None:
    """The notes of a shard that an earlier, killed pack finished, if it still verifies and its sources are older."""
    path = dest / WORK_FOLDER / (name + ".json")
    try:
        content = json.loads(path.read_bytes())
        record = content["record"] and ShardRecord(**content["record"])
        content |= {"record": record, "refused": [Refusal(*refusal) for refusal in content["refused"]]}
        notes = ShardNotes(**content)
        fresh = source.changed_at(entries) < path.stat().st_mtime
        if notes.fingerprint != fingerprint(entries, recipe) or not fresh:
            return None
        if record and (
            sha256_of_file(dest / record.name) != record.sha256
            or sha256_of_file(dest / record.index_name) != record.index_sha256
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return notes


def index_of(path: Path, name: str) -> ShardIndex:
    """The index of a tar, from the tar itself; tar entries that are no images are passed over. ValueError."""
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


def _read(source: Source, entry: Entry) -> Sample:
    """One entry's image; ValueError if it is to be refused, OSError for trouble that may pass, which ends the pack."""
    try:
        return source.read(entry)
    except OSError as error:
        raise OSError(f"{entry.name} cannot be read: {error}; the same command again goes on") from error


@dataclass(frozen=True)
class _Stored:
    """One sample as it goes into the tar."""

    data: bytes
    extension: str
    pixels: np.ndarray
    source_size: tuple[int, int]
    kept: bool

    @classmethod
    def of(cls, image: bytes | np.ndarray, recipe: Recipe) -> "_Stored":
        framing = recipe.framing
        if isinstance(image, np.ndarray):
            framed = frame_array(image, framing)
        elif recipe.keep_bytes and fits_unchanged(image, framing):
            pixels = np.empty((framing.image_size, framing.image_size, framing.image_channels), dtype=np.uint8)
            decode_into(image, "jpg", pixels)
            return cls(image, "jpg", pixels, (framing.image_size, framing.image_size), kept=True)
        else:
            framed = frame_bytes(image, framing)
        data = encode(framed.pixels, recipe.encoding, recipe.jpeg_quality)
        return cls(data, recipe.encoding, framed.pixels, framed.source_size, kept=False)


def _publish(temporary: Path, dest: Path, name: str, num_samples: int) -> ShardRecord | None:
    """Index a finished tar and move both to their places."""
    if num_samples == 0:
        temporary.unlink()
        return None
    index = index_of(temporary, name)
    if len(index.keys) != num_samples:
        raise AssertionError(f"shard {name}: {num_samples} samples written, {len(index.keys)} found")
    text = index.to_json(name).encode()
    record = ShardRecord(
        name=name,
        bytes=temporary.stat().st_size,
        sha256=sha256_of_file(temporary),
        samples=num_samples,
        index_bytes=len(text),
        index_sha256=hashlib.sha256(text).hexdigest(),
    )
    os.replace(temporary, dest / name)
    write_bytes_atomic(dest / record.index_name, text)
    return record
