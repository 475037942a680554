"""Where images come from: one small interface, the folder of files, and arrays in memory.

A source lists its entries once, in an order that depends on their names alone, and reads any entry by itself, so that
processes can share the work. Sources travel to worker processes by pickling and open their files again there.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_pipeline.storage.tar_index import check_member_name

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif"),
)
"""Names of images. HEIC is among them so that it is refused by name, as Pillow cannot decode it, and not passed over"""
MAX_FILE_BYTES = 256 << 20
"""Largest encoded image that is read; nothing larger is a photograph"""


class Entry(NamedTuple):
    """One image of a source."""

    key: str
    """WebDataset key: unique, no dot in its last part"""
    name: str
    """What a person knows it by, for messages"""
    num_bytes: int
    """Size as listed, part of the fingerprint by which a resumed pack knows its work"""
    place: Any
    """Where it is; the source's own business"""


class Sample(NamedTuple):
    """What a source holds for one entry."""

    image: bytes | np.ndarray
    """An encoded image file, or pixels (H, W), (H, W, 1) or (H, W, 3) uint8"""
    metadata: bytes | None = None
    """JSON stored beside the image as KEY.json, or nothing"""


class Refusal(NamedTuple):
    """An image that is left out, and why."""

    name: str
    reason: str


class Source(Protocol):
    """A set of images. Raises ValueError when opened if its structure cannot be trusted."""

    kind: str
    """folder, zip, tar, ..."""
    image_size: int | None
    """The size to pack at if none is asked for; None where there is no natural one"""
    image_channels: int
    """The natural number of channels"""
    num_ignored: int
    """Files passed over because they are not images"""
    refused: list[Refusal]
    """Entries refused while listing"""

    def entries(self) -> list[Entry]:
        """All entries in their fixed order."""

    def read(self, entry: Entry) -> Sample:
        """One entry's image. ValueError if what is there is not sound; OSError if the system cannot read it now."""

    def changed_at(self, entries: Sequence[Entry]) -> float:
        """Newest change of the files these entries are read from, Unix seconds; 0.0 where there are no files."""


class FolderSource:
    """All image files below a folder, in the order of their relative paths."""

    kind = "folder"
    image_size: int | None = None
    image_channels = 3

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self.root = root
        self.num_ignored = 0
        self.refused: list[Refusal] = []
        self._follow_links = follow_links

    @classmethod
    def opened(cls, path: Path, follow_links: bool) -> "FolderSource | None":
        """The reader of a folder with at least one image."""
        source = cls(path, follow_links)
        return source if path.is_dir() and source.entries() else None

    def entries(self) -> list[Entry]:
        found = []
        self.num_ignored, self.refused = 0, []
        for path in _files_below(self.root):
            name = path.relative_to(self.root).as_posix()
            if not is_image_name(name) and not path.is_dir():
                self.num_ignored += 1
            elif reason := self._objection(path, name):
                self.refused.append(Refusal(name.encode(errors="backslashreplace").decode(), reason))
            else:
                found.append(Entry(key_of(name), name, path.stat().st_size, name))
        self.refused.sort()
        return unique_keys(sorted(found, key=lambda entry: entry.name))

    def read(self, entry: Entry) -> Sample:
        return Sample((self.root / entry.place).read_bytes())

    def changed_at(self, entries: Sequence[Entry]) -> float:
        return max((changed_at(self.root / entry.place) for entry in entries), default=0.0)

    def _objection(self, path: Path, name: str) -> str | None:
        try:
            check_member_name(name)
        except ValueError as error:
            return str(error)
        if path.is_dir():
            return "is a link to a folder"
        if path.is_symlink() and not self._follow_links:
            return "is a link; give --follow-links to pack what links point to"
        if not path.is_file():
            return "is not a regular file"
        if path.stat().st_size > MAX_FILE_BYTES:
            return f"is larger than {MAX_FILE_BYTES} bytes"
        return None


class FilesSource:
    """What sources over large files have in common: the files, and a handle that does not travel to other processes."""

    image_size: int | None = None
    image_channels = 3

    def __init__(self, paths: Sequence[Path]) -> None:
        self.num_ignored = 0
        self.refused: list[Refusal] = []
        self._paths = list(paths)
        self._handle: Any = None

    def changed_at(self, entries: Sequence[Entry]) -> float:
        return max(changed_at(path) for path in self._paths)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}


class ArraySource:
    """Images in memory: (N, H, W) or (N, H, W, C) uint8, with optional JSON metadata for each."""

    def __init__(self, images: np.ndarray, kind: str = "arrays", metadata: Sequence[bytes] | None = None) -> None:
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise ValueError(f"images must be uint8 (N, H, W) or (N, H, W, C), got {images.dtype} {images.shape}")
        if metadata is not None and len(metadata) != len(images):
            raise ValueError(f"{len(metadata)} metadata for {len(images)} images")
        self.kind = kind
        self.image_size: int | None = images.shape[1] if images.shape[1] == images.shape[2] else None
        self.image_channels = images.shape[3] if images.ndim == 4 else 1
        self.num_ignored = 0
        self.refused: list[Refusal] = []
        self._images, self._metadata = images, metadata

    def entries(self) -> list[Entry]:
        num_bytes = int(self._images[:1].nbytes)
        return [Entry(f"{i:08d}", f"image {i}", num_bytes, i) for i in range(len(self._images))]

    def read(self, entry: Entry) -> Sample:
        metadata = None if self._metadata is None else self._metadata[entry.place]
        return Sample(self._images[entry.place], metadata)

    def changed_at(self, entries: Sequence[Entry]) -> float:
        return 0.0


def is_image_name(name: str) -> bool:
    """Whether a file's extension is one of an image, and neither it nor a folder above it is hidden."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return name.lower().endswith(SUFFIXES) and not hidden


def is_of_the_system(error: BaseException) -> bool:
    """Whether an error is the system's, such as a disk's, and may pass. Decoders raise OSErrors without a number."""
    return isinstance(error, OSError) and error.errno is not None


def key_of(name: str) -> str:
    """The WebDataset key of a file: its path without extension; a further dot would end the key, so it becomes _."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.rsplit(".", 1)[0].replace(".", "_")


def visible(paths: Iterable[Path], root: Path) -> list[Path]:
    """Sorted, without what is hidden: a Mac keeps a ._photos.tar beside photos.tar, which is not a tar."""
    return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(root).parts))


def check_no_images(folder: Path, suffix: str) -> None:
    """ValueError if a folder holds images beside its archives, which end with `suffix`."""
    if num_images := len(FolderSource(folder).entries()):
        raise ValueError(f"{folder} holds {num_images} image files beside {suffix} files; give one kind at a time")


def unique_keys(entries: list[Entry]) -> list[Entry]:
    """The same entries; ValueError naming two whose keys collide, or one whose key a tar cannot hold as it is."""
    names: dict[str, str] = {}
    for entry in entries:
        check_member_name(entry.key)
        if entry.key in names:
            raise ValueError(
                f"{names[entry.key]!r} and {entry.name!r} have the same key {entry.key!r}; rename or remove one of them"
            )
        names[entry.key] = entry.name
    return entries


def changed_at(path: Path) -> float:
    """Newest of a file's content and metadata change times, Unix seconds (a copy that keeps mtimes changes ctime)."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime)


def _files_below(root: Path) -> Iterator[Path]:
    for folder, folder_names, file_names in os.walk(root, onerror=_raise):
        for name in file_names:
            yield Path(folder, name)
        # Links to folders could lead in circles or out of the tree: they are listed, and so refused, not followed.
        for name in [name for name in folder_names if Path(folder, name).is_symlink()]:
            yield Path(folder, name)


def _raise(error: OSError) -> None:
    """A folder that cannot be listed is never taken for an empty one."""
    raise error
