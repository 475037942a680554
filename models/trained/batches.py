"""How many images a command works on at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.checks import check_whole

if TYPE_CHECKING:
    from models.config import ModelConfig

PIXELS_AT_ONCE = 2**18
LARGEST_BATCH = 256


def batch_size_for(asked: int | None, config: ModelConfig) -> int:
    """As asked, or what fits a few gigabytes."""
    if asked is None:
        return max(1, min(LARGEST_BATCH, PIXELS_AT_ONCE // config.image_size**2))
    check_whole("batch_size", asked, 1)
    return asked
