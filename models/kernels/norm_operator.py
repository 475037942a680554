"""The fused norm as an operator of torch's, which a compiler passes by: shapes, launches, gradients.

Importing this needs Triton. The kernels run on a GPU, or on a CPU under TRITON_INTERPRET=1, which is for tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from models.kernels.dropout import CounterDropout
from models.kernels.norm_triton import forward_kernel
from models.kernels.norm_triton_backward import backward_kernel

NUM_COLUMNS = 64
"""Channels that a program takes at least where there are as many: 128 bytes side by side in bfloat16."""
TILE_ELEMENTS = 2048
"""Read at a time: 16 for each thread of 4 warps, beside which the sums of the backward pass fit into registers."""
SPLIT_PIXELS = 1024
"""Larger maps are split. The split depends on the size of the map alone, so an image has the same bits in any batch."""
MAX_SAMPLE_ELEMENTS = 2**31 - 2**16
"""Offsets in a sample are 32 bits."""
INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class _Walk(NamedTuple):
    """How programs divide a tensor, (B, C, H, W), among them."""

    grid: tuple[int, int, int]
    """Samples, blocks of groups, splits."""
    num_pixels: int
    num_splits: int
    constants: dict[str, Any]

    @property
    def stages(self) -> list[dict[str, bool]]:
        """One launch that sums and applies, or one for each."""
        if self.num_splits == 1:
            return [{"SUMS": True, "APPLIES": True}]
        return [{"SUMS": True, "APPLIES": False}, {"SUMS": False, "APPLIES": True}]


def takes(x: Tensor, num_groups: int) -> bool:
    """Whether the kernels can normalise x, (B, C, H, W): where it is, its dtype, its size, the width of its groups."""
    width = x.shape[1] // num_groups
    # Four neighbours in memory share a call of the cipher: none may lie astride groups that are padded.
    aligned = x.shape[1] % 4 == 0 and (width % 4 == 0 or width == triton.next_power_of_2(width))
    sizes = x.numel() > 0 and x.shape[1] * x.shape[2] * x.shape[3] < MAX_SAMPLE_ELEMENTS
    return (x.is_cuda or INTERPRETED) and aligned and sizes and x.dtype in DTYPES


def fused_norm(
    x: Tensor,
    norm: nn.GroupNorm,
    shift: Tensor | None = None,
    dropout: CounterDropout | None = None,
    silu: bool = True,
) -> Tensor:
    """As `Norm.forward` of models/kernels/norm.py, in x's dtype and channels_last, where `takes` allows it."""
    counters, words, scale = None, [0, 0, 0, 0], 1.0
    if dropout is not None:
        counters, key = dropout.source
        words, scale = [*key, dropout.layer, dropout.threshold], dropout.scale
    return _norm(x, norm.weight, norm.bias, shift, counters, words, scale, norm.num_groups, norm.eps, silu)[0]


@torch.library.custom_op("rayddpm::group_norm", mutates_args=())
def _norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    counters: Tensor | None,
    words: list[int],
    scale: float,
    num_groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and what its gradient needs: mean and 1 / standard deviation, (B, groups) each.

    shift: (B, C); counters: (B,), of the samples, for dropout with words (key, key, layer, threshold).
    """
    x, y, means, rstds = _channels_last(x), *_outputs(x, num_groups)
    walk = _walk(x, num_groups)
    parts = [means.new_empty((len(x), walk.num_splits, num_groups)) for _ in range(2)]
    with torch.cuda.device_of(x):
        for stage in walk.stages:
            forward_kernel[walk.grid](
                *(x, _row(shift, x), weight.contiguous(), bias.contiguous(), _row(counters, x)),
                *(y, means, rstds, *parts, walk.num_pixels, num_groups, walk.num_splits, SPLIT_PIXELS, eps),
                *(*words, scale),
                **walk.constants,
                **stage,
                **{"SHIFTED": shift is not None, "SILU": silu, "DROPS": counters is not None},
            )
    return y, means, rstds


@torch.library.custom_op("rayddpm::group_norm_backward", mutates_args=())
def _norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    counters: Tensor | None,
    means: Tensor,
    rstds: Tensor,
    words: list[int],
    scale: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias, and shift, which is empty if there is none."""
    grad, x, num_groups = _channels_last(grad), _channels_last(x), means.shape[1]
    grad_x, grad_shift = torch.empty_like(x), _empty_as(shift, x)
    walk = _walk(x, num_groups)
    sums = means.new_empty((3, len(x), walk.num_splits, x.shape[1]))
    with torch.cuda.device_of(x):
        for stage in walk.stages:
            backward_kernel[walk.grid](
                *(x, grad, _row(shift, x), weight.contiguous(), bias.contiguous(), _row(counters, x)),
                *(means, rstds, grad_x, grad_shift, *sums.unbind()),
                *(walk.num_pixels, num_groups, walk.num_splits, SPLIT_PIXELS, *words, scale),
                **walk.constants,
                **stage,
                **{"SHIFTED": shift is not None, "SILU": silu, "DROPS": counters is not None},
            )
    grad_bias, grad_weight = sums[0].sum((0, 1)), sums[1].sum((0, 1))
    return grad_x, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), grad_shift


@_norm.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(x, arguments[6])


@_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, *_: Any) -> tuple[Tensor, ...]:
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    return grad_x, torch.empty_like(weight), torch.empty_like(bias), _empty_as(shift, x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, shift, counters, *rest = inputs
    words, scale, _, _, silu = rest
    ctx.save_for_backward(x, weight, bias, shift, counters, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.constants = words, scale, silu


def _gradients(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    found = _norm_backward(grad, *ctx.saved_tensors, *ctx.constants)
    shifted = ctx.saved_tensors[3] is not None
    return (*found[:3], found[3] if shifted else None, *[None] * 6)


_norm.register_autograd(_gradients, setup_context=_save)


def _walk(x: Tensor, num_groups: int) -> _Walk:
    channels, num_pixels = x.shape[1], x.shape[2] * x.shape[3]
    width = channels // num_groups
    padded = triton.next_power_of_2(width)
    # At most the largest power of two that divides the number of groups.
    num_together = min(num_groups & -num_groups, max(1, NUM_COLUMNS // padded, 4 // padded))
    columns = num_together * padded
    constants = {
        **{"GROUP": width, "PADDED": padded, "COLUMNS": columns, "ROWS": max(1, TILE_ELEMENTS // columns)},
        "REAL": tl.float64 if x.dtype == torch.float64 else tl.float32,
    }
    num_splits = triton.cdiv(num_pixels, SPLIT_PIXELS)
    return _Walk((len(x), num_groups // num_together, num_splits), num_pixels, num_splits, constants)


def _outputs(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    means, rstds = (x.new_empty((x.shape[0], num_groups), dtype=real) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.channels_last), means, rstds


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty_as(shift: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if shift is None else torch.empty_like(shift, memory_format=torch.contiguous_format)


def _row(values: Tensor | None, x: Tensor) -> Tensor:
    """What is not there is not read, but a kernel wants an address."""
    return x if values is None else values.contiguous()
