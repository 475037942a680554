"""The gradients of the fused norm, by the same walk as models/kernels/norm_triton.py, which has what both need."""

# Triton reads the annotations of a kernel, which says no types otherwise.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

import triton
import triton.language as tl
from triton.language import constexpr

from models.kernels.norm_triton import (
    CHUNK,
    NOT_SPECIALISED,
    channels_of,
    group_sums,
    kept,
    row_of,
    spread,
    tile,
)


@triton.jit
def _gradients(
    x, grad, moved, centre, rstd, weight, bias, identity, key0, key1, layer, threshold, scale, row, end, channel,
    exists, quad, channels, COLUMNS: constexpr, ROWS: constexpr, REAL: constexpr, SILU: constexpr, DROPS: constexpr,
):  # fmt: skip
    """Of a tile: the normalised values, the gradients of the norm's output (zeros outside), offsets, what is there."""
    place, there = tile(row, end, channel, exists, channels, ROWS)
    value = tl.load(x + place, mask=there, other=0.0).to(REAL) + moved[None, :]
    value = (value - centre[None, :]) * rstd[None, :]
    found = tl.load(grad + place, mask=there, other=0.0).to(REAL)
    if DROPS:
        stays = kept(identity, key0, key1, layer, threshold, row, channels, quad, ROWS, COLUMNS)
        found = tl.where(stays, found * scale, 0.0)
    if SILU:
        normed = value * weight[None, :] + bias[None, :]
        gate = 1.0 / (1.0 + tl.exp(-normed))
        found = found * gate * (1.0 + normed * (1.0 - gate))
    return tl.where(there, value, 0.0), tl.where(there, found, 0.0), place, there


@triton.jit
def _sums(
    x, grad, moved, centre, rstd, weight, bias, identity, key0, key1, layer, threshold, scale, start, end, channel,
    exists, quad, channels, COLUMNS: constexpr, ROWS: constexpr, REAL: constexpr, SILU: constexpr, DROPS: constexpr,
):  # fmt: skip
    """Over some pixels, of each column: the sums of gradients, of gradients times values, and of values."""
    grads, products, values = (
        tl.zeros((ROWS, COLUMNS), REAL),
        tl.zeros((ROWS, COLUMNS), REAL),
        tl.zeros((ROWS, COLUMNS), REAL),
    )
    for row in range(start, end, ROWS):
        value, found, _, _ = _gradients(
            x, grad, moved, centre, rstd, weight, bias, identity, key0, key1, layer, threshold, scale, row, end,
            channel, exists, quad, channels, COLUMNS, ROWS, REAL, SILU, DROPS,
        )  # fmt: skip
        grads += found
        products += found * value
        values += value
    return tl.sum(grads, axis=0), tl.sum(products, axis=0), tl.sum(values, axis=0)


@triton.jit
def _joined_sums(sums, num_splits, channels, channel, exists):
    """(COLUMNS,) sums over all splits."""
    total = tl.zeros(channel.shape, sums.dtype.element_ty)
    for first in range(0, num_splits, CHUNK):
        split = first + tl.arange(0, CHUNK)[:, None]
        there = (split < num_splits) & exists[None, :]
        total += tl.sum(tl.load(sums + split * channels + channel[None, :], mask=there, other=0.0), axis=0)
    return total


@triton.jit
def _join(grad_sums, product_sums, value_sums, parts, num_splits, channels, channel, exists):
    grads = _joined_sums(grad_sums + parts, num_splits, channels, channel, exists)
    products = _joined_sums(product_sums + parts, num_splits, channels, channel, exists)
    return grads, products, _joined_sums(value_sums + parts, num_splits, channels, channel, exists)


@triton.jit
def _store(grad_sums, product_sums, value_sums, place, exists, grads, products, values):
    tl.store(grad_sums + place, grads, mask=exists)
    tl.store(product_sums + place, products, mask=exists)
    tl.store(value_sums + place, values, mask=exists)


@triton.jit
def _write(
    x, grad, moved, centre, rstd, weight, bias, identity, key0, key1, layer, threshold, scale, start, end, channel,
    exists, quad, channels, grad_mean, product_mean, grad_x,
    COLUMNS: constexpr, ROWS: constexpr, REAL: constexpr, SILU: constexpr, DROPS: constexpr,
):  # fmt: skip
    """The gradient of some pixels."""
    for row in range(start, end, ROWS):
        value, found, place, there = _gradients(
            x, grad, moved, centre, rstd, weight, bias, identity, key0, key1, layer, threshold, scale, row, end,
            channel, exists, quad, channels, COLUMNS, ROWS, REAL, SILU, DROPS,
        )  # fmt: skip
        found = (found * weight[None, :] - grad_mean[None, :] - value * product_mean[None, :]) * rstd[None, :]
        tl.store(grad_x + place, found, mask=there)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def backward_kernel(
    x, grad, shift, weight, bias, counters, means, rstds, grad_x, grad_shift, grad_sums, product_sums, value_sums,
    num_pixels, num_groups, num_splits, split_pixels, key0, key1, layer, threshold, scale,
    GROUP: constexpr, PADDED: constexpr, COLUMNS: constexpr, ROWS: constexpr, REAL: constexpr,
    SHIFTED: constexpr, SILU: constexpr, DROPS: constexpr, SUMS: constexpr, APPLIES: constexpr,
):  # fmt: skip
    """Grid and flags as forward_kernel's. SUMS: *_sums, (B, splits, C); APPLIES: grad_x as x, grad_shift (B, C)."""
    sample, block, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, end, channels = split * split_pixels, tl.minimum((split + 1) * split_pixels, num_pixels), num_groups * GROUP
    channel, exists = channels_of(block, 1, GROUP, PADDED, COLUMNS)
    quad, _ = channels_of(block, 4, GROUP, PADDED, COLUMNS)
    group = sample * num_groups + block * (COLUMNS // PADDED) + tl.arange(0, COLUMNS // PADDED)
    moved = row_of(shift + sample * channels, channel, exists, SHIFTED, REAL)
    centre, rstd = spread(tl.load(means + group), PADDED, COLUMNS), spread(tl.load(rstds + group), PADDED, COLUMNS)
    scales, biases = row_of(weight, channel, exists, True, REAL), row_of(bias, channel, exists, True, REAL)
    identity = tl.load(counters + sample) if DROPS else sample
    first, at = sample * num_pixels * channels, sample * num_splits * channels
    if SUMS:
        grads, products, values = _sums(
            x + first, grad + first, moved, centre, rstd, scales, biases, identity, key0, key1, layer, threshold, scale,
            start, end, channel, exists, quad, channels, COLUMNS, ROWS, REAL, SILU, DROPS,
        )  # fmt: skip
        _store(grad_sums, product_sums, value_sums, at + split * channels + channel, exists, grads, products, values)
    else:
        grads, products, values = _join(grad_sums, product_sums, value_sums, at, num_splits, channels, channel, exists)
    if APPLIES:
        grad_mean = spread(group_sums(grads * scales, PADDED, COLUMNS), PADDED, COLUMNS) / (num_pixels * GROUP)
        product_mean = spread(group_sums(products * scales, PADDED, COLUMNS), PADDED, COLUMNS) / (num_pixels * GROUP)
        if SHIFTED:  # noqa: SIM102 (one is known when compiling)
            if split == 0:
                found = (grads * scales - grad_mean * num_pixels - product_mean * values) * rstd
                tl.store(grad_shift + sample * channels + channel, found, mask=exists)
        _write(
            x + first, grad + first, moved, centre, rstd, scales, biases, identity, key0, key1, layer, threshold, scale,
            start, end, channel, exists, quad, channels, grad_mean, product_mean, grad_x + first,
            COLUMNS, ROWS, REAL, SILU, DROPS,
        )  # fmt: skip
