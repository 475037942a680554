"""Images as 8-bit levels, as they are stored and shown, and as the numbers in [-1, 1] that the process knows."""

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """x: floats in [-1, 1], any shape and device -> uint8 in [0, 255], rounded to the nearest level and clamped.

    Raises ValueError for NaN, which a network that has diverged gives and which is near to no level.
    """
    if torch.isnan(x).any():
        raise ValueError("the images hold NaN: the network has diverged, or its weights are damaged")
    # Truncation, a common slip, darkens every image by half a level.
    return x.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(levels: Tensor) -> Tensor:
    """levels: uint8 in [0, 255], any shape and device -> float32 in [-1, 1]: level / 127.5 - 1 (Ho tpu_utils.py:64)."""
    return levels.to(torch.float32) / 127.5 - 1.0
