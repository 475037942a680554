"""The manifest: what a packed data set is, and the digest that names it everywhere."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from common.checks import check, check_whole

MANIFEST_NAME = "manifest.json"
FORMAT_NAME = "rayddpm-shards"
FORMAT_VERSION = 1
_SAFE_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardRecord:
    """One tar and its index. Raises ValueError for names that could leave the folder and for impossible numbers."""

    name: str
    """File name in the data set's folder, such as images-000000.tar"""
    bytes: int
    """Size of the tar"""
    sha256: str
    """Hash of the tar, hex"""
    samples: int
    """Number of samples in it, at least 1"""
    index_bytes: int
    """Size of the index file"""
    index_sha256: str
    """Hash of the index file, hex"""

    def __post_init__(self) -> None:
        check_shard_name(self.name)
        for number in (self.bytes, self.samples, self.index_bytes):
            if not isinstance(number, int) or number < 1:
                raise ValueError(f"shard {self.name}: sizes and sample counts must be integers >= 1, got {number!r}")
        for sha256 in (self.sha256, self.index_sha256):
            if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
                raise ValueError(f"shard {self.name}: {sha256!r} is not a sha256 in hex")

    @property
    def index_name(self) -> str:
        return self.name.removesuffix(".tar") + ".index.json"


@dataclass(frozen=True)
class Manifest:
    """Raises ValueError if the parts do not fit together."""

    image_size: int
    """Side of the square images, pixels"""
    image_channels: int
    """3 for RGB, 1 for grey"""
    num_samples: int
    """Samples over all shards"""
    preprocessing: Mapping[str, Any]
    """How source images became samples: crop, filter, encoding, quality"""
    shards: tuple[ShardRecord, ...]
    """In the order in which sample indices count through them"""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Where the images came from: kind and counts; informative, not part of the digest"""

    def __post_init__(self) -> None:
        for number in (self.image_size, self.num_samples):
            if not isinstance(number, int):
                raise ValueError(f"image_size and num_samples must be integers, got {number!r}")
        for mapping in (self.preprocessing, self.source):
            if not isinstance(mapping, Mapping):
                raise ValueError(f"preprocessing and source must be mappings, got {mapping!r}")
        check(self.image_channels in (1, 3), "image_channels", self.image_channels, "1 or 3")
        check_whole("image_size", self.image_size, 1)
        if not self.shards:
            raise ValueError("a data set needs at least one shard")
        if self.num_samples != sum(self.shard_sizes):
            raise ValueError(f"num_samples is {self.num_samples}, but the shards hold {sum(self.shard_sizes)}")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("two shards have the same name")

    @cached_property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples in each shard, the first argument of SampleOrder."""
        return tuple(shard.samples for shard in self.shards)

    @cached_property
    def digest(self) -> str:
        """Identity of the data set: sha256 (hex) of the canonical JSON of all that defines its content."""
        content = self._content()
        del content["source"]
        return _canonical_sha256(content)

    @property
    def checksum(self) -> str:
        """Over everything in the manifest: tells damage apart from content, never identifies."""
        return _canonical_sha256(self._content())

    def to_json(self) -> str:
        """The text of manifest.json: the same bytes for the same manifest."""
        content = self._content() | {"digest": self.digest, "checksum": self.checksum}
        return json.dumps(content, indent=1, sort_keys=True) + "\n"

    def differences(self, other: "Manifest") -> list[str]:
        """What differs between two data sets, one line each, at most ten; empty if the digests agree."""
        if self.digest == other.digest:
            return []
        names = ("image_size", "image_channels", "num_samples", "preprocessing")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        lines = [f"{name}: {mine} -> {theirs}" for name, mine, theirs in pairs if mine != theirs]
        mine_by_name = {shard.name: shard for shard in self.shards}
        theirs_by_name = {shard.name: shard for shard in other.shards}
        for name in sorted(mine_by_name | theirs_by_name):
            mine, theirs = mine_by_name.get(name), theirs_by_name.get(name)
            if mine != theirs:
                lines.append(f"shard {name}: {_short(mine)} -> {_short(theirs)}")
        return lines[:10] or ["the same shards in another order"]

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "image_size": self.image_size,
            "image_channels": self.image_channels,
            "num_samples": self.num_samples,
            "preprocessing": dict(self.preprocessing),
            "source": dict(self.source),
            "shards": [asdict(shard) for shard in self.shards],
        }


def check_shard_name(name: str) -> None:
    """ValueError for a shard's file name that could leave its folder or confuse a shell."""
    if not isinstance(name, str) or not _SAFE_SHARD_NAME.fullmatch(name):
        raise ValueError(
            f"shard name {name!r} is not a plain file name ending in .tar: letters, digits, . _ - are allowed"
        )


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """The manifest in a JSON text; ValueError naming `where` if it is damaged, edited or of another format."""
    try:
        content = json.loads(text)
        if content["format"] != FORMAT_NAME or content["format_version"] != FORMAT_VERSION:
            raise ValueError(
                f"format {content['format']!r} version {content['format_version']!r}; "
                f"this program reads {FORMAT_NAME!r} version {FORMAT_VERSION}"
            )
        names = ("image_size", "image_channels", "num_samples", "preprocessing", "source")
        shards = tuple(ShardRecord(**shard) for shard in content["shards"])
        manifest = Manifest(shards=shards, **{name: content[name] for name in names})
        stored_digest, stored_checksum = content["digest"], content["checksum"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} is not a usable manifest ({error!r}); pack the data set again") from error
    if manifest.digest == stored_digest and manifest.checksum != stored_checksum:
        raise ValueError(f"{where} is damaged in its informative part; restore it or pack the data set again")
    if manifest.digest != stored_digest:
        raise ValueError(
            f"{where} was changed after packing: it states digest {stored_digest}, its content has "
            f"{manifest.digest}; restore it or pack the data set again"
        )
    return manifest


def load_manifest(path: str | Path) -> Manifest:
    """Read manifest.json from a local data set folder (or its path itself). FileNotFoundError, ValueError."""
    path = Path(path)
    file = data_folder(path) / MANIFEST_NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"no data set at {path}: {MANIFEST_NAME} is missing; "
            "make one with `python -m data_pipeline pack SOURCE DEST` or use demo:digits"
        )
    return parse_manifest(file.read_bytes(), str(file))


def data_folder(path: str | Path) -> Path:
    """The folder of a local data set, which may be named by its manifest too."""
    return Path(path).parent if Path(path).name == MANIFEST_NAME else Path(path)


def _canonical_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _short(shard: ShardRecord | None) -> str:
    return "absent" if shard is None else f"{shard.samples} samples, sha256 {shard.sha256[:12]}"
