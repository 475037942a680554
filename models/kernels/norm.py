"""Group normalisation with what stands around it in a residual block: by torch's operations, or by one fused kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels.dropout import CounterDropout, dropped


class Fused(NamedTuple):
    """What a norm calls instead of torch's operations, see models/kernels/norm_operator.py."""

    takes: Callable[[Tensor, int], bool]
    norm: Callable[[Tensor, nn.GroupNorm, Tensor | None, CounterDropout | None, bool], Tensor]


class Norm(nn.GroupNorm):
    """dropout(silu(group_norm(x + shift))); without SiLU, shift or dropout where they are not given."""

    def __init__(self, num_groups: int, num_channels: int, eps: float, silu: bool = True) -> None:
        super().__init__(num_groups, num_channels, eps=eps)
        self.silu = silu
        self.fused: Fused | None = None
        """Set by `fuse_norms`."""

    def forward(self, x: Tensor, shift: Tensor | None = None, dropout: CounterDropout | None = None) -> Tensor:
        """x: (B, C, H, W), shift: (B, C). Returns x's shape and dtype (under autocast torch's own may be wider)."""
        if self.fused is not None and self.fused.takes(x, self.num_groups):
            return self.fused.norm(x, self, shift, dropout, self.silu)
        found = super().forward(x if shift is None else x + shift[:, :, None, None])
        found = F.silu(found) if self.silu else found
        return found if dropout is None else dropped(dropout, found)


def fuse_norms(network: nn.Module) -> None:
    """Let the network's norms take the fused kernel wherever it can be. Raises ImportError without Triton."""
    from models.kernels.norm_operator import fused_norm, takes

    for module in network.modules():
        if isinstance(module, Norm):
            module.fused = Fused(takes, fused_norm)
