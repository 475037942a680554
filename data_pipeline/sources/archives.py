"""Images inside tar and zip files, read in place; nothing is extracted to disk."""

import json
import lzma
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.sources.source import (
    MAX_FILE_BYTES,
    Entry,
    FilesSource,
    Refusal,
    Sample,
    check_no_images,
    is_image_name,
    is_of_the_system,
    key_of,
    unique_keys,
    visible,
)
from data_pipeline.storage.local import read_at
from data_pipeline.storage.manifest import MANIFEST_NAME
from data_pipeline.storage.tar_index import TarMember, check_member_name, plain_name, split_name, tar_members

_MAX_METADATA_BYTES = 1 << 20
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, EOFError, KeyError)
"""What zipfile raises over damage besides ValueError; RuntimeError: a method or encryption it does not know"""


class TarSource(FilesSource):
    """The images of one or more uncompressed tars, such as WebDataset shards; a sample's .json goes along."""

    kind = "tar"

    @classmethod
    def opened(cls, path: Path, follow_links: bool) -> "TarSource | None":
        """The reader of a .tar file, or of a folder of them."""
        if path.is_file():
            return cls([path]) if path.name.lower().endswith(".tar") else None
        tars = visible(path.glob("*.tar"), path)
        if tars and not (path / MANIFEST_NAME).is_file():  # else one of our sets; its preview is not one of its images
            check_no_images(path, ".tar")
            if visible(path.rglob("*.parquet"), path):
                raise ValueError(f"{path} holds .tar and .parquet files; give one kind at a time")
        return cls(tars) if tars else None

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        self.num_ignored, self.refused = 0, []
        for number, path in enumerate(self._paths):
            members = list(tar_members(path))
            images = [member for member in members if is_image_name(member.name)]
            _check_once(path, [member for member in members if not is_image_name(member.name)])
            metadata = _metadata_of(images, members)
            self.num_ignored += len(members) - len(images) - len(metadata)
            for member in images:
                name = f"{path.name}:{member.name}"
                if member.length > MAX_FILE_BYTES:
                    self.refused.append(Refusal(name, f"is larger than {MAX_FILE_BYTES} bytes"))
                    continue
                place = (number, member, metadata.get(member.name))
                found.append(Entry(key_of(member.name), name, member.length, place))
        return unique_keys(found)

    def read(self, entry: Entry) -> Sample:
        number, image, metadata = entry.place
        text = self._bytes(number, metadata) if metadata else None
        try:
            json.loads(text or b"null")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its metadata {metadata.name} is not JSON: {error}") from error
        return Sample(self._bytes(number, image), text)

    def _bytes(self, number: int, member: TarMember) -> bytes:
        data = read_at(self._paths[number], member.offset, member.length)
        if len(data) != member.length:
            raise ValueError("the tar ends before its last byte")
        return data


class ZipSource(FilesSource):
    """The images of a zip file. Raises ValueError if the file is not a zip or holds names that cannot be trusted."""

    kind = "zip"

    def __init__(self, path: Path) -> None:
        super().__init__([path])

    @classmethod
    def opened(cls, path: Path, follow_links: bool) -> "ZipSource | None":
        return cls(path) if path.is_file() and path.name.lower().endswith(".zip") else None

    def entries(self) -> list[Entry]:
        found = []
        self.num_ignored, self.refused = 0, []
        for member in self._open().infolist():
            _check_zip_member(self._paths[0], member)
            name = plain_name(member.filename)
            if member.is_dir():
                continue
            if not is_image_name(name):
                self.num_ignored += 1
            elif member.flag_bits & 1:
                self.refused.append(Refusal(name, "is encrypted"))
            elif member.file_size > MAX_FILE_BYTES:
                self.refused.append(Refusal(name, f"is larger than {MAX_FILE_BYTES} bytes"))
            else:
                found.append(Entry(key_of(name), name, member.file_size, member.filename))
        return unique_keys(sorted(found, key=lambda entry: entry.name))

    def read(self, entry: Entry) -> Sample:
        try:
            with self._open().open(entry.place) as file:
                # One byte more than listed, so that the checksum is reached and a lying size is noticed.
                data = file.read(entry.num_bytes + 1)
        except (*_ZIP_ERRORS, OSError) as error:
            if is_of_the_system(error):
                raise
            raise ValueError(f"cannot be unpacked: {error}") from error
        if len(data) != entry.num_bytes:
            raise ValueError(f"unpacks to another size than the {entry.num_bytes} bytes listed")
        return Sample(data)

    def _open(self) -> zipfile.ZipFile:
        if self._handle is None:
            try:
                self._handle = zipfile.ZipFile(self._paths[0])
            except (*_ZIP_ERRORS, ValueError, OverflowError) as error:
                raise ValueError(f"{self._paths[0]} is not a usable zip file: {error}") from error
        return self._handle


def _check_once(path: Path, members: Sequence[TarMember]) -> None:
    """members: all but the images, whose keys are compared over all tars."""
    name, number = Counter(member.name for member in members).most_common(1)[0] if members else ("", 1)
    if number > 1:
        raise ValueError(f"{path} cannot be trusted: it holds {name!r} {number} times, and only one can be meant")


def _metadata_of(images: Sequence[TarMember], members: Sequence[TarMember]) -> dict[str, TarMember]:
    """Image name -> its .json: that of the same full stem, else that of the same WebDataset key if both are alone."""
    texts = [member for member in members if member.name.endswith(".json") and member.length <= _MAX_METADATA_BYTES]
    by_stem = {_stem(text): text for text in texts}
    found = {image.name: by_stem[_stem(image)] for image in images if _stem(image) in by_stem}
    taken = {text.name for text in found.values()}
    num_images = Counter(_key(image) for image in images)
    num_texts = Counter(_key(text) for text in texts)
    by_key = {_key(text): text for text in texts if text.name not in taken and num_texts[_key(text)] == 1}
    for image in images:
        if image.name not in found and num_images[_key(image)] == 1 and _key(image) in by_key:
            found[image.name] = by_key[_key(image)]
    return found


def _stem(member: TarMember) -> str:
    return member.name.rpartition(".")[0]


def _key(member: TarMember) -> str:
    return split_name(member.name)[0]


def _check_zip_member(path: Path, member: zipfile.ZipInfo) -> None:
    try:
        check_member_name(member.filename)
    except ValueError as error:
        raise ValueError(f"{path} cannot be trusted: {error}") from error
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{path} cannot be trusted: member {member.filename!r} is a link or device")
