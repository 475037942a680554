"""clean-fid's Inception features from the published TorchScript file, in clean-fid's two modes.

`clean`: each channel resized to 299 px by Pillow's bicubic filter on floats, clipped, not rounded. `legacy_tensorflow`:
the network resizes by itself, as the original TensorFlow FID did. Equal to clean-fid's own functions by test.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.features import as_rgb, in_chunks
from eval.weights import inception_path

_SIDE = 299
_FEATURES = 2048


def load_inception(folder: Path | None, sha256: str, device: str = "cpu") -> torch.jit.ScriptModule:
    """The published network, proven by sha256 before a byte of it is interpreted. Raises BlockedError."""
    path = inception_path(folder, sha256)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")  # the file is published in this format only
        return torch.jit.load(str(path), map_location=device).eval()


class Inception:
    """Inception features (2048) or, with `probabilities`, the softmax over its 1008 outputs (Inception Score)."""

    chunk_images = 16

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        mode: str,
        device: str = "cpu",
        precision: str = "float32",
        probabilities: bool = False,
    ):
        """mode: clean or legacy_tensorflow. Raises ValueError for another."""
        if mode not in ("clean", "legacy_tensorflow"):
            raise ValueError(f"mode {mode!r}: allowed are clean, legacy_tensorflow")
        self.dimension = 1008 if probabilities else _FEATURES
        self._module, self._mode, self._probabilities = module, mode, probabilities
        self._device = torch.device(device)
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bfloat16")

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return in_chunks(self._chunk, as_rgb(images), self.chunk_images)

    def _chunk(self, images: Tensor) -> Tensor:
        pixels = resize_clean(images) if self._mode == "clean" else images
        pixels = pixels.to(self._device)
        with self._autocast:
            if self._probabilities:
                return self._module(pixels, no_output_bias=True)
            if self._mode == "legacy_tensorflow":
                return self._module(pixels, return_features=True).reshape(len(images), _FEATURES)
            return self._module.layers((pixels - 128) / 128).reshape(len(images), _FEATURES)


def resize_clean(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, 299, 299) in [0, 255]: Pillow's bicubic on each float channel, clipped."""
    planes = images.cpu().numpy().astype(np.float32).reshape(-1, *images.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(resized).clip(0, 255)).reshape(len(images), 3, _SIDE, _SIDE)
