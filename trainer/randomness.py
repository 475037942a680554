"""Every draw of training as a function of (seed, sample counter): the same on any number of workers."""

from typing import Final

import torch
from torch import Tensor

from models import philox
from models.kernels.dropout import MaskSource

_FLIP: Final = "train/flip"
_TIMESTEP: Final = "train/timestep"
_NOISE: Final = "train/noise"
_DROPOUT: Final = "train/dropout"


def flips(seed: int, counters: Tensor) -> Tensor:
    """counters: (b,) int64. Returns (b,) bool, True for half of all counters: mirror this image."""
    return philox.randint(seed, _FLIP, counters, 2) == 1


def timesteps(seed: int, counters: Tensor, num_timesteps: int) -> Tensor:
    """counters: (b,) int64. Returns t (b,) int64, uniform on {0, ..., num_timesteps - 1} (Alg. 1, zero-based)."""
    return philox.randint(seed, _TIMESTEP, counters, num_timesteps)


def noise(seed: int, counters: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """counters: (b,) int64; shape: of one image. Returns (b, *shape) standard normal."""
    return philox.normal(seed, _NOISE, counters, shape, dtype=dtype)


def dropout_masks(seed: int, counters: Tensor) -> MaskSource:
    """counters: (b,) int64. Returns what a network draws its dropout's masks from."""
    return MaskSource(counters, philox.stream_key(seed, _DROPOUT))
