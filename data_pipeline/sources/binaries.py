"""Data sets in their published binary files: MNIST's IDX and the CIFAR binaries, as torchvision leaves them on disk.

The pickled CIFAR files are refused: reading a pickle runs whatever code it holds.
"""

import gzip
import io
import json
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipeline.sources.source import ArraySource, Entry, changed_at
from data_pipeline.storage.tar_index import members_in

_IDX_IMAGES, _IDX_LABELS = b"\0\0\x08\x03", b"\0\0\x08\x01"
_MAX_DATA_BYTES = 4 << 30
_MAX_ARCHIVE_BYTES = 256 << 20
"""CIFAR-10's archive unpacks to 176 MiB, which is done in memory"""
_UNPACK = "unpack other .tar.gz files first and pack the folder"
_IDX_TRAIN_NAMES = (
    *("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"),
    *("train-images.idx3-ubyte", "train-images.idx3-ubyte.gz"),
)
_CIFAR_SIDE = 32
_CIFAR_PIXELS = 3 * _CIFAR_SIDE**2
_CIFAR_TRAIN_NAMES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


class BinarySource(ArraySource):
    """Arrays that came from files."""

    def __init__(self, kind: str, images: np.ndarray, labels: np.ndarray | None, paths: Sequence[Path]) -> None:
        metadata = None if labels is None else [json.dumps({"label": int(label)}).encode() for label in labels]
        super().__init__(images, kind, metadata)
        self._paths = list(paths)

    def changed_at(self, entries: Sequence[Entry]) -> float:
        return max(changed_at(path) for path in self._paths)


def idx_source(path: Path) -> BinarySource:
    """An IDX file of images, plain or .gz, with the labels beside it if they are there. ValueError if damaged."""
    images = _read_idx(path, _IDX_IMAGES, 3)
    labels_path = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if labels_path == path or not labels_path.is_file():
        return BinarySource("IDX file", images, None, [path])
    labels = _read_idx(labels_path, _IDX_LABELS, 1)
    if len(labels) != len(images):
        raise ValueError(f"{path} has {len(images)} images, but {labels_path} has {len(labels)} labels")
    return BinarySource("IDX file", images, labels, [path, labels_path])


def cifar_source(paths: Sequence[Path]) -> BinarySource:
    """CIFAR binary files joined in this order. ValueError if one is damaged."""
    parts = [(path, path.read_bytes()) for path in paths]
    images, labels = _cifar_arrays([(str(path), data) for path, data in parts])
    return BinarySource("CIFAR binary", images, labels, paths)


def cifar_archive_source(path: Path) -> BinarySource:
    """cifar-10-binary.tar.gz as published: its training batches, read without extracting. ValueError."""
    try:
        with gzip.open(path) as file:
            archive = file.read(_MAX_ARCHIVE_BYTES + 1)
        if len(archive) > _MAX_ARCHIVE_BYTES:
            raise ValueError(f"it unpacks to more than {_MAX_ARCHIVE_BYTES} bytes")
        members = list(members_in(io.BytesIO(archive), len(archive), str(path)))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} cannot be read as CIFAR-10's binary archive: {error}; {_UNPACK}") from error
    batches = [member for member in members if member.name.rpartition("/")[2] in _CIFAR_TRAIN_NAMES]
    found = {
        member.name.rpartition("/")[2]: archive[member.offset : member.offset + member.length] for member in batches
    }
    if not len(batches) == len(found) == len(_CIFAR_TRAIN_NAMES):
        raise ValueError(f"{path} is not CIFAR-10's binary archive with its five batches, each once; {_UNPACK}")
    images, labels = _cifar_arrays([(f"{path}:{name}", found[name]) for name in _CIFAR_TRAIN_NAMES])
    return BinarySource("CIFAR binary", images, labels, [path])


def open_idx(path: Path, follow_links: bool) -> BinarySource | None:
    """MNIST or one of its kin: the file, its folder, or where torchvision puts it below the path."""
    if path.is_file():
        return idx_source(path) if is_idx(path) else None
    places = [path, path / "raw", *sorted(path.glob("*/raw"))]
    files = [next(filter(Path.is_file, (place / name for name in _IDX_TRAIN_NAMES)), None) for place in places]
    sets = [file for file in files if file]
    if len(sets) > 1:
        raise ValueError(f"{path} holds several sets: {', '.join(map(str, sets))}; give the folder of one of them")
    return idx_source(sets[0]) if sets else None


def open_cifar(path: Path, follow_links: bool) -> BinarySource | None:
    """CIFAR-10 as published: the archive, a binary file, or the folder of these, where torchvision puts it."""
    name = path.name.lower()
    if path.is_file():
        if name.endswith((".tar.gz", ".tgz")):
            return cifar_archive_source(path)
        return cifar_source([path]) if name.endswith(".bin") else None
    for place in (path, path / "cifar-10-batches-bin"):
        paths = [place / name for name in _CIFAR_TRAIN_NAMES]
        if all(file.is_file() for file in paths):
            return cifar_source(paths)
    for place in (path, path / "cifar-10-batches-py"):
        if (place / "data_batch_1").is_file():
            raise ValueError(
                f"{place} holds Python pickles, which can run code when read; give CIFAR-10's binary version "
                "(cifar-10-binary.tar.gz, or its data_batch_*.bin)"
            )
    return None


def is_idx(path: Path) -> bool:
    """Whether a file starts like an IDX file of images, plain or compressed."""
    try:
        with _open(path) as file:
            return file.read(4) == _IDX_IMAGES
    except (OSError, EOFError, zlib.error):
        return False


def _read_idx(path: Path, magic: bytes, num_dimensions: int) -> np.ndarray:
    try:
        with _open(path) as file:
            if file.read(4) != magic:
                raise ValueError(f"{path} is not an IDX file of {num_dimensions} dimensions of bytes")
            header = file.read(4 * num_dimensions).ljust(4 * num_dimensions, b"\0")
            shape = struct.unpack(f">{num_dimensions}I", header)
            num_bytes = math.prod(shape)
            if not 0 < num_bytes <= _MAX_DATA_BYTES:
                raise ValueError(f"{path} claims shape {shape}; 1 to {_MAX_DATA_BYTES} bytes are allowed")
            data = file.read(num_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if len(data) != num_bytes:
        raise ValueError(f"{path} holds {len(data)} bytes or more, its header says {num_bytes}: it is damaged")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _open(path: Path) -> BinaryIO:
    file = open(path, "rb")  # noqa: SIM115
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return gzip.open(path, "rb")  # type: ignore[return-value]
    file.seek(0)
    return file


def _cifar_arrays(parts: Sequence[tuple[str, bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 32, 32, 3) images and (N,) labels: the last of one label byte (CIFAR-10) or two (CIFAR-100)."""
    images, labels = [], []
    for name, data in parts:
        num_labels = next((n for n in (1, 2) if data and len(data) % (_CIFAR_PIXELS + n) == 0), None)
        if num_labels is None:
            raise ValueError(f"{name} has {len(data)} bytes, not a whole number of CIFAR images: it is damaged")
        records = np.frombuffer(data, dtype=np.uint8).reshape(-1, _CIFAR_PIXELS + num_labels)
        labels.append(records[:, num_labels - 1])
        planes = records[:, num_labels:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
        images.append(planes.transpose(0, 2, 3, 1))
    return np.concatenate(images), np.concatenate(labels)
