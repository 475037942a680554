"""clean-fid's Inception features from the published TorchScript file, in clean-fid's two modes.

`clean`: each channel resized to 299 px by Pillow's bicubic filter on floats, clipped, not rounded. `legacy_tensorflow`:
the network resizes by itself, as the original TensorFlow FID did. Equal to clean-fid's own functions by test.
"""

import copy
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.metrics.chunks import as_rgb, in_chunks
from eval.metrics.weights import inception_path

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
        self._mode, self._probabilities = mode, probabilities
        self._device = torch.device(device)
        self._layers_alone = mode == "clean" and not probabilities
        self._module = accelerate(module.layers if self._layers_alone else module, self._call)
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bfloat16")

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return in_chunks(self._chunk, as_rgb(images), self.chunk_images)

    def _chunk(self, images: Tensor) -> Tensor:
        pixels = resize_clean(images) if self._mode == "clean" else images.to(torch.float32)
        pixels = pixels.to(self._device).contiguous(memory_format=torch.channels_last)
        with self._autocast:
            return self._call(self._module, pixels)

    def _call(self, module: torch.jit.ScriptModule, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, H, W) in [0, 255], 299 px if the network does not resize by itself."""
        if self._probabilities:
            return module(pixels, no_output_bias=True)
        found = module((pixels - 128) / 128) if self._layers_alone else module(pixels, return_features=True)
        return found.reshape(len(pixels), _FEATURES)


def accelerate(
    module: torch.jit.ScriptModule, call: Callable[[torch.jit.ScriptModule, Tensor], Tensor]
) -> torch.jit.ScriptModule:
    """The same function with batch norms folded into convolutions and weights laid out channels last.

    call: how the module is used, on pixels in [0, 255]. On one core 1.5 times as fast. Believed only after both have
    given the same for a probe image, to 1e-5 of its size; otherwise, and for a file that cannot be frozen, the module
    as it is.
    """
    probe = torch.linspace(0, 255, 3 * _SIDE * _SIDE).reshape(1, 3, _SIDE, _SIDE)
    probe = probe.to(next(chain(module.parameters(), module.buffers()), probe).device)  # it may have neither
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch.jit, in which the file is published
        expected = call(module, probe)
        try:
            faster = torch.jit.freeze(copy.deepcopy(module).to(memory_format=torch.channels_last))
            found = call(faster, probe.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return module
    close = torch.linalg.vector_norm(found - expected) <= 1e-5 * torch.linalg.vector_norm(expected)
    return faster if close else module


def resize_clean(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 3, 299, 299) in [0, 255]: Pillow's bicubic on each float channel, clipped."""
    planes = images.cpu().numpy().astype(np.float32).reshape(-1, *images.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(resized).clip(0, 255)).reshape(len(images), 3, _SIDE, _SIDE)
