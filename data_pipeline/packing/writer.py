"""Writing one shard: a WebDataset tar, its index, and what there is to say about it. Each file appears whole or not."""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from common.files import sha256_of_file, temporary_name, write_atomic, write_bytes_atomic
from data_pipeline.packing.framing import Framing, fits_unchanged, frame_array, frame_bytes
from data_pipeline.packing.options import Recipe
from data_pipeline.sources.source import Entry, Refusal, Sample, Source
from data_pipeline.storage.codec import decode_into, encode
from data_pipeline.storage.index import index_of
from data_pipeline.storage.manifest import ShardRecord

WORK_FOLDER = ".pack"
"""Notes of an unfinished pack inside its destination; gone when the manifest is there"""


class Task(NamedTuple):
    """The packing of one shard."""

    source: Source
    entries: Sequence[Entry]
    recipe: Recipe
    dest: Path
    name: str


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


def write_shard(task: Task) -> ShardNotes:
    """Pack entries into dest/name; images that cannot be right are refused with the reason, never guessed at."""
    _, entries, recipe, dest, name = task
    work, temporary = dest / WORK_FOLDER, temporary_name(dest / WORK_FOLDER / name)
    tally = _Tally(np.zeros(recipe.framing.shape, dtype=np.uint32))
    try:
        with open(temporary, "wb") as file:
            started = temporary.stat().st_mtime_ns
            _write_tar(file, task, tally)
            file.flush()
            os.fsync(file.fileno())
        record = _publish(temporary, dest, name, len(entries) - len(tally.refused))
    finally:
        temporary.unlink(missing_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, tally.pixel_sums)
    write_bytes_atomic(work / (name + ".npy"), buffer.getvalue())
    work_id, sizes = fingerprint(entries, recipe), dict(tally.source_sizes)
    notes = ShardNotes(name, len(entries), work_id, record, tally.refused, sizes, tally.num_enlarged, tally.num_kept)

    def write_notes(path: Path) -> None:
        path.write_text(json.dumps(asdict(notes)), encoding="utf-8")
        # The notes are as old as the first read, so that a source changed while it was being packed is packed again.
        os.utime(path, ns=(started, started))

    write_atomic(work / (name + ".json"), write_notes)
    return notes


@dataclass
class _Tally:
    """What there is to say of the images of one shard."""

    pixel_sums: np.ndarray
    """(H, W, C) uint32"""
    refused: list[Refusal] = field(default_factory=list)
    source_sizes: Counter[str] = field(default_factory=Counter)
    num_enlarged: int = 0
    num_kept: int = 0

    def add(self, stored: "_Stored") -> None:
        self.pixel_sums += stored.pixels
        self.source_sizes[f"{stored.source_size[0]}x{stored.source_size[1]}"] += 1
        self.num_enlarged += min(stored.source_size) < self.pixel_sums.shape[0]
        self.num_kept += stored.kept


def _write_tar(file: BinaryIO, task: Task, tally: _Tally) -> None:
    from webdataset.writer import TarWriter  # slow to import, and only packing needs it

    with TarWriter(
        file, user="", group="", mode=0o644, mtime=0, encoder=False, compress=False, format="PAX_FORMAT"
    ) as writer:
        for entry in task.entries:
            try:
                sample = _read(task.source, entry)
                stored = _Stored.of(sample.image, task.recipe)
            except ValueError as error:
                tally.refused.append(Refusal(entry.name, str(error)))
                continue
            metadata = {} if sample.metadata is None else {"json": sample.metadata}
            writer.write({"__key__": entry.key, stored.extension: stored.data} | metadata)
            tally.add(stored)


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
        elif recipe.keep_bytes and (pixels := _pixels_to_keep(image, framing)) is not None:
            return cls(image, "jpg", pixels, (framing.image_size, framing.image_size), kept=True)
        else:
            framed = frame_bytes(image, framing)
        data = encode(framed.pixels, recipe.encoding, recipe.jpeg_quality)
        return cls(data, recipe.encoding, framed.pixels, framed.source_size, kept=False)


def _pixels_to_keep(image: bytes, framing: Framing) -> np.ndarray | None:
    """What the bytes of a source are decoded to if they can be stored as they are; None if they cannot.

    The decoder of stored samples takes no odd bytes, such as zeros before a JPEG's end: these are left out by encoding.
    """
    if not fits_unchanged(image, framing):
        return None
    pixels = np.empty(framing.shape, dtype=np.uint8)
    try:
        decode_into(image, "jpg", pixels)
    except ValueError:
        return None
    return pixels


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
