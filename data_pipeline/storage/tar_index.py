"""A strict reader of tar directories: every member's place, or a refusal. Nothing is ever extracted.

Python's tarfile and webdataset stop without a word at the first damaged header, and so lose samples; here a tar must
be whole up to its end marker. Names that leave the folder, links, devices, sparse files and giant headers are refused.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

_MAX_HEADER_BYTES = 1 << 20
_BLOCK_BYTES = 512


class TarMember(NamedTuple):
    """A regular file in a tar."""

    name: str
    offset: int
    """Where its bytes start in the tar"""
    length: int


def tar_members(path: str | Path) -> Iterator[TarMember]:
    """The regular files of an uncompressed tar in their order. ValueError naming tar and member for anything odd."""
    path = Path(path)
    with open(path, "rb") as file:
        yield from members_in(file, path.stat().st_size, str(path))


def members_in(file: BinaryIO, size_bytes: int, where: str) -> Iterator[TarMember]:
    """The same for a tar in an open file of size_bytes bytes; where: its name, for messages."""
    try:
        archive = tarfile.open(fileobj=_HeaderReader(file), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
        for member in archive:
            _check(member, size_bytes)
            # A long run over millions of members must not keep them all.
            archive.members.clear()
            if member.isfile():
                yield TarMember(plain_name(member.name), member.offset_data, member.size)
    except (tarfile.TarError, ValueError, OverflowError, UnicodeError, EOFError, OSError) as error:
        raise ValueError(f"{where} is not a tar that can be trusted: {error}") from error
    _check_end(where, file, archive.offset, size_bytes)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a WebDataset member: "a/b.seg.png" -> ("a/b", "seg.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def check_member_name(name: str) -> None:
    """ValueError for a name that is empty, absolute, climbs out of its folder or holds control characters."""
    parts = name.split("/")
    if not name or name.startswith("/") or ".." in parts or "\\" in name:
        raise ValueError(f"member name {name!r} leaves its folder; only plain relative names are allowed")
    if any(ord(character) < 32 or 0xD800 <= ord(character) <= 0xDFFF for character in name):
        raise ValueError(f"member name {name!r} holds control characters or is not valid UTF-8")


def plain_name(name: str) -> str:
    """A checked name without the parts that mean nothing: "./a//b.png", as `tar c .` writes it, is a/b.png."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


class _HeaderReader:
    """Passes a file through to tarfile, which reads headers only, and stops headers that claim to be giants."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes; at most {_MAX_HEADER_BYTES} are allowed")
        return self._file.read(size)


def _check(member: tarfile.TarInfo, size_bytes: int) -> None:
    check_member_name(member.name)
    if member.isdir():
        return
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise ValueError(f"member {member.name!r} is a link, device or special file; only regular files are allowed")
    if member.size < 0 or member.offset_data + member.size > size_bytes:
        raise ValueError(f"member {member.name!r} ends beyond the file: the tar is truncated or damaged")


def _check_end(where: str, file: BinaryIO, offset: int, size_bytes: int) -> None:
    """tarfile stops at a damaged header as if the archive ended there: what ends a tar is zero blocks alone."""
    file.seek(offset)
    remaining = size_bytes - offset
    marker = file.read(2 * _BLOCK_BYTES)
    if len(marker) < 2 * _BLOCK_BYTES or any(marker):
        raise ValueError(f"{where} is damaged at byte {offset}: no valid member and no end marker; fetch it again")
    while remaining > 0:
        block = file.read(1 << 20)
        if any(block):
            raise ValueError(f"{where} holds data behind its end marker; fetch or pack it again")
        if not block:
            return
