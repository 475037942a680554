"""How to pack: what a user may ask for, and the recipe that follows for one source."""

from dataclasses import dataclass
from typing import Any, Literal

from common.checks import check_whole
from data_pipeline.packing.framing import Framing
from data_pipeline.sources.source import Source
from data_pipeline.storage.codec import Encoding
from data_pipeline.storage.manifest import check_shard_name

LARGEST_LOSSLESS_SIZE = 64
"""encoding=auto stores PNG up to this image size, JPEG above"""


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
class PackOptions:
    """How to pack."""

    image_size: int | None = None
    """Side of the stored squares, pixels; None: the source's own where it has one"""
    image_channels: int | None = None
    """3 for RGB, 1 for grey; None: the source's own"""
    encoding: Encoding | Literal["auto"] = "auto"
    """png and npy are lossless; auto is png up to 64 pixels and jpg above"""
    jpeg_quality: int = 95
    """1 to 100"""
    keep_bytes: bool = False
    """Store JPEGs that already fit as they are"""
    exact: bool = False
    """Decode at full size and resize by Pillow's Lanczos to the bit"""
    background: int = 255
    """Grey value under transparent pixels"""
    samples_per_shard: int = 1000
    """Source images to a shard"""
    name: str = "images"
    """Start of the shards' file names"""
    skip_refused: bool = False
    """Leave refused images out instead of failing"""

    def recipe(self, source: Source) -> Recipe:
        """The options with the source's own values filled in. ValueError."""
        check_whole("samples_per_shard", self.samples_per_shard, 1)
        check_shard_name(self.shard_name(0))
        image_size = source.image_size if self.image_size is None else self.image_size
        if image_size is None:
            raise ValueError(f"a {source.kind} has no size of its own: give --image-size, for example 256")
        channels = source.image_channels if self.image_channels is None else self.image_channels
        encoding: Encoding
        if self.encoding == "auto":
            encoding = "png" if image_size <= LARGEST_LOSSLESS_SIZE else "jpg"
        else:
            encoding = self.encoding
        framing = Framing(image_size, channels, self.exact, self.background)
        return Recipe(framing, encoding, self.jpeg_quality, self.keep_bytes)

    def shard_name(self, number: int) -> str:
        """File name of a shard, counted from 0."""
        return f"{self.name}-{number:06d}.tar"
