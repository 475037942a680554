"""Feature networks, as protocols name them: `EXTRACTORS` is the one table of them.

A new one takes a file with its class and an entry here. What computes is imported when it is built, so that the
command line reads the table at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from typing import Protocol as Interface

from eval.metrics.metric import METRICS
from eval.metrics.weights import EFFICIENTNET_LITE0_SHA256, INCEPTION_SHA256

if TYPE_CHECKING:
    from torch import Tensor

    from eval.protocol import Protocol


class FeatureExtractor(Interface):
    """images: uint8 (B, C, H, W) with C 1 or 3, on any device -> (B, dimension) float64 on the CPU."""

    dimension: int

    def __call__(self, images: "Tensor") -> "Tensor": ...


@dataclass(frozen=True)
class Build:
    """What a network is built from."""

    sha256: str
    """Of its weights file."""
    weights_folder: Path | None
    device: str
    precision: Literal["float32", "bfloat16"]
    probabilities: bool
    """Whether it gives class probabilities, for an Inception Score, and not features."""


@dataclass(frozen=True)
class Extractor:
    """A feature network and how images reach it."""

    network: str
    """As in a protocol's `extractor`."""
    resize: str
    """The rule by which images are resized, as in a protocol's `resize`; the network's own file says what it means."""
    sha256: str
    """Of the published weights file."""
    dimension: int
    """Features of an image."""
    build: Callable[[Build], FeatureExtractor]
    """Raises BlockedError, saying what to do, if the weights are missing or damaged."""
    gives_fid: bool = False
    """Whether distances through the published weights bear the published names FID and KID."""


def _inception(resize: str) -> Callable[[Build], FeatureExtractor]:
    def build(wanted: Build) -> FeatureExtractor:
        from eval.metrics.inception import Inception, load_inception

        module = load_inception(wanted.weights_folder, wanted.sha256, wanted.device)
        return Inception(module, resize, wanted.device, wanted.precision, wanted.probabilities)

    return build


def _efficientnet_lite0(wanted: Build) -> FeatureExtractor:
    from eval.metrics.efficientnet import EfficientNetLite0

    return EfficientNetLite0(wanted.sha256, wanted.device, wanted.precision, wanted.probabilities)


EXTRACTORS = {
    "efficientnet_lite0": Extractor(
        "efficientnet_lite0", "bicubic_96_128_224", EFFICIENTNET_LITE0_SHA256, 1280, _efficientnet_lite0
    ),
    "clean": Extractor("inception", "clean", INCEPTION_SHA256, 2048, _inception("clean"), gives_fid=True),
    "tf": Extractor(
        "inception", "legacy_tensorflow", INCEPTION_SHA256, 2048, _inception("legacy_tensorflow"), gives_fid=True
    ),
}
"""How a protocol's name spells it -> the network and its resizing."""


def find_extractor(network: str, resize: str) -> str:
    """The name in EXTRACTORS of what a protocol has found to be there."""
    return next(name for name, known in EXTRACTORS.items() if (known.network, known.resize) == (network, resize))


def build_extractor(protocol: "Protocol", weights_folder: Path | None = None, device: str = "cpu") -> FeatureExtractor:
    """The extractor a protocol names, its weights file proven by sha256.

    Raises BlockedError if the weights are missing or damaged; the message says what to do.
    """
    known = EXTRACTORS[find_extractor(protocol.extractor, protocol.resize)]
    probabilities = METRICS[protocol.metric].looks_at == "probabilities"
    return known.build(Build(protocol.extractor_sha256, weights_folder, device, protocol.precision, probabilities))
