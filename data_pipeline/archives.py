"""Images inside tar and zip files, read in place; nothing is extracted to disk."""

import stat
import zipfile
from pathlib import Path

from data_pipeline.dataset import read_at
from data_pipeline.sources import (
    MAX_FILE_BYTES,
    Entry,
    FilesSource,
    Refusal,
    Sample,
    is_image_name,
    key_of,
    unique_keys,
)
from data_pipeline.tar_index import TarMember, check_member_name, split_name, tar_members

_MAX_METADATA_BYTES = 1 << 20


class TarSource(FilesSource):
    """The images of one or more uncompressed tars, such as WebDataset shards; a sample's .json goes along."""

    kind = "tar"

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        self.num_ignored, self.refused = 0, []
        for number, path in enumerate(self._paths):
            members = list(tar_members(path))
            metadata = {split_name(member.name)[0]: member for member in members if _is_metadata(member)}
            images = [member for member in members if is_image_name(member.name)]
            num_json = len({split_name(member.name)[0] for member in images} & metadata.keys())
            self.num_ignored += len(members) - len(images) - num_json
            for member in images:
                name = f"{path.name}:{member.name}"
                if member.length > MAX_FILE_BYTES:
                    self.refused.append(Refusal(name, f"is larger than {MAX_FILE_BYTES} bytes"))
                    continue
                place = (number, member, metadata.get(split_name(member.name)[0]))
                found.append(Entry(key_of(member.name), name, member.length, place))
        return unique_keys(found)

    def read(self, entry: Entry) -> Sample:
        number, image, metadata = entry.place
        return Sample(self._bytes(number, image), self._bytes(number, metadata) if metadata else None)

    def _bytes(self, number: int, member: TarMember) -> bytes:
        data = read_at(self._paths[number], member.offset, member.length)
        if len(data) != member.length:
            raise ValueError("the tar ends before its last byte")
        return data


class ZipSource(FilesSource):
    """The images of a zip file. Raises ValueError if the file is no zip or holds names that cannot be trusted."""

    kind = "zip"

    def __init__(self, path: Path) -> None:
        super().__init__([path])

    def entries(self) -> list[Entry]:
        found = []
        self.num_ignored, self.refused = 0, []
        for member in self._open().infolist():
            _check_zip_member(self._paths[0], member)
            if member.is_dir():
                continue
            if not is_image_name(member.filename):
                self.num_ignored += 1
            elif member.flag_bits & 1:
                self.refused.append(Refusal(member.filename, "is encrypted"))
            elif member.file_size > MAX_FILE_BYTES:
                self.refused.append(Refusal(member.filename, f"is larger than {MAX_FILE_BYTES} bytes"))
            else:
                found.append(Entry(key_of(member.filename), member.filename, member.file_size, member.filename))
        return unique_keys(sorted(found, key=lambda entry: entry.name))

    def read(self, entry: Entry) -> Sample:
        try:
            with self._open().open(entry.place) as file:
                # One byte more than listed, so that the checksum is reached and a lying size is noticed.
                data = file.read(entry.num_bytes + 1)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, KeyError) as error:
            raise ValueError(f"cannot be unpacked: {error}") from error
        if len(data) != entry.num_bytes:
            raise ValueError(f"unpacks to another size than the {entry.num_bytes} bytes listed")
        return Sample(data)

    def _open(self) -> zipfile.ZipFile:
        if self._handle is None:
            try:
                self._handle = zipfile.ZipFile(self._paths[0])
            except zipfile.BadZipFile as error:
                raise ValueError(f"{self._paths[0]} is not a usable zip file: {error}") from error
        return self._handle


def _is_metadata(member: TarMember) -> bool:
    return member.name.endswith(".json") and member.length <= _MAX_METADATA_BYTES


def _check_zip_member(path: Path, member: zipfile.ZipInfo) -> None:
    try:
        check_member_name(member.filename)
    except ValueError as error:
        raise ValueError(f"{path} cannot be trusted: {error}") from error
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{path} cannot be trusted: member {member.filename!r} is a link or device")
