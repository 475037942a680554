"""Every draw of training as a function of (seed, sample counter): the same on any number of workers.

Dropout is the one exception: its masks are drawn by torch inside the network, so they repeat for an equal world size
and engine, and differ between world sizes.
"""

import hashlib
from typing import Final

import torch
from torch import Tensor

from models import philox

_FLIP: Final = "train/flip"
_TIMESTEP: Final = "train/timestep"
_NOISE: Final = "train/noise"


def flips(seed: int, counters: Tensor) -> Tensor:
    """counters: (b,) int64. Returns (b,) bool, True for half of all counters: mirror this image."""
    return philox.randint(seed, _FLIP, counters, 2) == 1


def timesteps(seed: int, counters: Tensor, num_timesteps: int) -> Tensor:
    """counters: (b,) int64. Returns t (b,) int64, uniform on {0, ..., num_timesteps - 1} (Alg. 1, zero-based)."""
    return philox.randint(seed, _TIMESTEP, counters, num_timesteps)


def noise(seed: int, counters: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """counters: (b,) int64; shape: of one image. Returns (b, *shape) standard normal."""
    return philox.normal(seed, _NOISE, counters, shape, dtype=dtype)


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Set torch's generators for one step of one worker, so that a resumed run draws the masks it would have drawn."""
    key = hashlib.sha256(f"dropout {seed} {step} {rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(key[:8], "little") >> 1)
