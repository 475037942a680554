"""Data sets that need no download: digits of scikit-learn and of MNIST, drawn faces, and the paths that name them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from common.checks import check_choice, check_whole
from data_pipeline.demo.faces import draw_face
from data_pipeline.demo.mnist import NUM_MNIST, mnist_source
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import Progress, TaskRunner, pack
from data_pipeline.sources.source import ArraySource, Entry, Refusal, Sample, Source
from data_pipeline.storage.manifest import Manifest

_PREFIX = "demo:"
_SET_VERSION = 3
_NUM_DIGITS = 1797
_DIGIT_LEVELS = 16
_DEFAULT_NUM_IMAGES = {"digits": _NUM_DIGITS, "faces": 2000, "mnist": NUM_MNIST}
DEMO_SETS = tuple(_DEFAULT_NUM_IMAGES)


@dataclass(frozen=True)
class DemoOptions:
    """Which demo set. Raises ValueError for an unknown set or a number out of range."""

    name: str
    """digits, faces or mnist"""
    image_size: int | None = None
    """Pixels per side; digits are 8 by nature, MNIST with its border 32, faces default to 64"""
    num_images: int | None = None
    """How many; digits: the first of 1797, MNIST: of 5000, faces: 2000"""
    seed: int = 0
    """Which faces; digits are what they are"""

    def __post_init__(self) -> None:
        check_choice("demo set", self.name, DEMO_SETS)
        if self.num_images is not None:
            largest = None if self.name == "faces" else _DEFAULT_NUM_IMAGES[self.name]
            check_whole("num_images", self.num_images, 1, largest)
        check_whole("seed", self.seed, 0)

    @property
    def folder_name(self) -> str:
        """A name of its own for every demo set."""
        source = self.source()
        size = self.image_size or source.image_size
        number = self.num_images or _DEFAULT_NUM_IMAGES[self.name]
        return f"{self.name}-{size}px-{number}-seed{self.seed}-v{_SET_VERSION}"

    def source(self) -> Source:
        """Where the images come from. ValueError for a size that cannot be drawn, or a package that is missing."""
        num_images = self.num_images or _DEFAULT_NUM_IMAGES[self.name]
        if self.name == "faces":
            return FaceSource(self.image_size or 64, num_images, self.seed)
        return digits_source(num_images) if self.name == "digits" else mnist_source(num_images)


class FaceSource:
    """Drawn faces; processes draw their own."""

    kind = "drawn faces"
    image_channels = 3
    num_ignored = 0

    def __init__(self, image_size: int, num_images: int, seed: int) -> None:
        draw_face(seed, 0, image_size)  # refuses a bad size now
        self.image_size: int | None = image_size
        self.refused: list[Refusal] = []
        self._num_images, self._seed = num_images, seed

    def entries(self) -> list[Entry]:
        size = self.image_size or 0
        return [
            Entry(f"{i:08d}", f"face {i} of seed {self._seed}", size * size * 3, i) for i in range(self._num_images)
        ]

    def read(self, entry: Entry) -> Sample:
        return Sample(draw_face(self._seed, entry.place, self.image_size or 0))

    def changed_at(self, entries: Sequence[Entry]) -> float:
        return 0.0


def digits_source(num_images: int = _NUM_DIGITS) -> ArraySource:
    """The handwritten digits of scikit-learn: 8x8 grey, 17 levels stretched to 0..255, labels as metadata."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    images = np.rint(digits.images[:num_images] * 255 / _DIGIT_LEVELS).astype(np.uint8)
    labels = [json.dumps({"label": int(label)}).encode() for label in digits.target[:num_images]]
    return ArraySource(images, "digits of scikit-learn", labels)


def pack_demo(
    options: DemoOptions, dest: str | Path, run: TaskRunner | None = None, progress: Progress | None = None
) -> Manifest:
    """Pack a demo set into `dest`. ValueError as pack() raises it."""
    # Small shards, so that even these sets have several for each worker.
    pack_options = PackOptions(options.image_size, samples_per_shard=300, name=options.name)
    return pack(options.source(), dest, pack_options, run, progress)


def parse_demo_path(path: str) -> DemoOptions | None:
    """The options in a path "demo:NAME?option=value&..."; None for any other path. ValueError for a bad one."""
    if not path.startswith(_PREFIX):
        return None
    name, _, query = path[len(_PREFIX) :].partition("?")
    values: dict[str, int] = {}
    for option, text in parse_qsl(query, keep_blank_values=True):
        if option not in ("image_size", "num_images", "seed"):
            raise ValueError(f"{path!r}: option {option!r} is unknown; allowed are image_size, num_images, seed")
        if not text.isascii() or not text.isdigit():
            raise ValueError(f"{path!r}: {option} must be a whole number, got {text!r}")
        values[option] = int(text)
    return DemoOptions(name, values.get("image_size"), values.get("num_images"), values.get("seed", 0))
