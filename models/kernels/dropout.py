"""Dropout whose mask is a function of (seed, sample counter, layer): the same in any batch, on any number of workers.

torch's masks come from a generator, so they depend on what was drawn before and on which images share a batch.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import philox


class MaskSource(NamedTuple):
    """What decides the masks of a batch, besides the layer."""

    counters: Tensor
    """(B,) int64 sample counters, on the images' device."""
    key: tuple[int, int]
    """Of the stream of random words, from `philox.stream_key`."""


class CounterDropout(NamedTuple):
    """Dropout of one layer: the element at (pixel, channel) of image b is kept if word pixel * C + channel of the row
    (counters[b], layer) of the stream is at least `threshold`."""

    probability: float
    layer: int
    source: MaskSource

    @property
    def threshold(self) -> int:
        """Of 32-bit words, uniform on [0, 2^32): those below it are dropped."""
        return round(self.probability * 2**32)

    @property
    def scale(self) -> float:
        """What is kept is multiplied by this, so that the mean stays."""
        return 1.0 / (1.0 - self.probability)


class Dropout(nn.Module):
    """Dropout in training, nothing otherwise; p: the probability in [0, 1) that an element becomes 0.

    Without a source of masks they are torch's own, for training loops without sample counters.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.layer = 0
        """Its number in the network, see `number_layers`."""

    def forward(self, x: Tensor, source: MaskSource | None = None) -> Tensor:
        """x: (B, C, H, W) floats. Returns the same shape and dtype."""
        if not self.training or self.p == 0.0:
            return x
        dropout = self.of(source)
        return F.dropout(x, self.p) if dropout is None else dropped(dropout, x)

    def of(self, source: MaskSource | None) -> CounterDropout | None:
        """What an operation that drops by itself needs; None if there is nothing to drop, or masks are torch's own."""
        if not self.training or self.p == 0.0 or source is None:
            return None
        return CounterDropout(self.p, self.layer, source)

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


def number_layers(network: nn.Module) -> None:
    """Give each dropout of the network a number of its own, from 0 in the order of its modules."""
    numbers = itertools.count()
    for module in network.modules():
        if isinstance(module, Dropout):
            module.layer = next(numbers)


def dropped(dropout: CounterDropout, x: Tensor) -> Tensor:
    """x, (B, C, H, W), without the elements that its masks drop, scaled."""
    return torch.where(kept(dropout, x), x * dropout.scale, 0.0)


def kept(dropout: CounterDropout, x: Tensor) -> Tensor:
    """Which elements of x, (B, C, H, W), stay: bool of x's shape."""
    (batch, channels, height, width), (counters, key) = x.shape, dropout.source
    mask = _kept(counters, *key, dropout.layer, dropout.threshold, channels * height * width)
    return mask.view(batch, height, width, channels).permute(0, 3, 1, 2)


@torch.library.custom_op("rayddpm::kept", mutates_args=())
def _kept(counters: Tensor, key0: int, key1: int, layer: int, threshold: int, num: int) -> Tensor:
    """(B, num) bool. An operator of its own, since a compiler would unroll the cipher's rounds."""
    return philox.bits_at_least(threshold, (key0, key1), counters, layer, num)


@_kept.register_fake
def _(counters: Tensor, key0: int, key1: int, layer: int, threshold: int, num: int) -> Tensor:
    return counters.new_empty((counters.shape[0], num), dtype=torch.bool)
