"""The kernels of the fused norm, in Triton: group normalisation of x + shift, SiLU and dropout, and their gradients.

x is (B, H * W, C) in memory, which is channels_last. A program takes the columns of some whole groups of one sample,
whose channels lie side by side, and walks over pixels: all of them, or one split of them where the maps are large. It
computes in float32 (float64 for float64), adds in an order that the shape alone decides, and uses no atomics.
"""

# Triton reads the annotations of a kernel, which says no types otherwise.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803

import triton
import triton.language as tl
from triton.language import constexpr

CHUNK = tl.constexpr(32)  # splits that are added at a time
NOT_SPECIALISED = ["key0", "key1", "layer", "threshold"]  # other layers, the same machine code


@triton.jit
def channels_of(block, STEP: constexpr, GROUP: constexpr, PADDED: constexpr, COLUMNS: constexpr):
    """The channel of each STEPth column of a block, and which of them exist: groups are padded to a power of two."""
    column = tl.arange(0, COLUMNS // STEP) * STEP
    if GROUP == PADDED:
        channel = block * COLUMNS + column
    else:
        channel = (block * (COLUMNS // PADDED) + column // PADDED) * GROUP + column % PADDED
    return channel, column % PADDED < GROUP


@triton.jit
def tile(row, end, channel, exists, channels, ROWS: constexpr):
    """Offsets in a sample of the pixels from `row` on, (ROWS, COLUMNS), and which of them are there."""
    pixel = row + tl.arange(0, ROWS)
    return pixel[:, None] * channels + channel[None, :], (pixel < end)[:, None] & exists[None, :]


@triton.jit
def group_sums(values, PADDED: constexpr, COLUMNS: constexpr):
    """(COLUMNS,) -> one sum for each group."""
    return tl.sum(tl.reshape(values, (COLUMNS // PADDED, PADDED)), axis=1)


@triton.jit
def spread(values, PADDED: constexpr, COLUMNS: constexpr):
    """One value for each group -> (COLUMNS,)."""
    return tl.reshape(tl.broadcast_to(values[:, None], (COLUMNS // PADDED, PADDED)), (COLUMNS,))


@triton.jit
def row_of(pointer, place, exists, THERE: constexpr, REAL: constexpr):
    """Values of the columns, or zeros for what is not given."""
    if THERE:
        return tl.load(pointer + place, mask=exists, other=0.0).to(REAL)
    else:
        return tl.zeros(place.shape, REAL)


@triton.jit
def kept(identity, key0, key1, layer, threshold, row, channels, quad, ROWS: constexpr, COLUMNS: constexpr):
    """Which elements of a tile stay, as models/kernels/dropout.py says; four neighbours share a call of the cipher."""
    pixel = row + tl.arange(0, ROWS)
    position = ((pixel[:, None] * channels + quad[None, :]) // 4).to(tl.uint32)
    zero = tl.zeros(position.shape, tl.uint32)
    low, high = (identity & 0xFFFFFFFF).to(tl.uint32), ((identity >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key = (key0.to(tl.uint32), key1.to(tl.uint32))
    w0, w1, w2, w3 = tl.philox_impl(position, zero + layer.to(tl.uint32), zero + low, zero + high, key[0], key[1])
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (ROWS, COLUMNS))
    return words.to(tl.int64) >= threshold


@triton.jit
def _moments(
    x, moved, start, end, channel, exists, channels,
    GROUP: constexpr, PADDED: constexpr, COLUMNS: constexpr, ROWS: constexpr, REAL: constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of each group over some pixels, in one pass.

    Deviations are from the mean of the first tile, so that a large mean costs no digits.
    """
    place, there = tile(start, end, channel, exists, channels, ROWS)
    first = tl.where(there, tl.load(x + place, mask=there, other=0.0).to(REAL) + moved[None, :], 0.0)
    about = group_sums(tl.sum(first, axis=0), PADDED, COLUMNS) / (tl.minimum(end - start, ROWS) * GROUP)
    centre = spread(about, PADDED, COLUMNS)[None, :]
    ones, squares = tl.zeros((ROWS, COLUMNS), REAL), tl.zeros((ROWS, COLUMNS), REAL)
    for row in range(start, end, ROWS):
        place, there = tile(row, end, channel, exists, channels, ROWS)
        value = tl.load(x + place, mask=there, other=0.0).to(REAL) + moved[None, :]
        deviation = tl.where(there, value - centre, 0.0)
        ones += deviation
        squares += deviation * deviation
    total = group_sums(tl.sum(ones, axis=0), PADDED, COLUMNS)
    square = group_sums(tl.sum(squares, axis=0), PADDED, COLUMNS)
    mean = total / ((end - start) * GROUP)
    squared = square - total * mean
    # Not maximum, which loses NaN.
    return about + mean, tl.where(squared < 0.0, 0.0, squared)


@triton.jit
def _joined_moments(
    means, spreads, group, num_groups, num_pixels, num_splits, split_pixels, GROUP: constexpr, REAL: constexpr
):
    """Mean and sum of squared deviations of each group over all splits (Chan et al. 1983)."""
    total, squared = tl.zeros(group.shape, REAL), tl.zeros(group.shape, REAL)
    for first in range(0, num_splits, CHUNK):
        split = first + tl.arange(0, CHUNK)[:, None]
        count = tl.maximum(tl.minimum(num_pixels - split * split_pixels, split_pixels), 0) * GROUP
        place = split * num_groups + group[None, :]
        total += tl.sum(count * tl.load(means + place, mask=split < num_splits, other=0.0), axis=0)
    mean = total / (num_pixels * GROUP)
    for first in range(0, num_splits, CHUNK):
        split = first + tl.arange(0, CHUNK)[:, None]
        count = tl.maximum(tl.minimum(num_pixels - split * split_pixels, split_pixels), 0) * GROUP
        place = split * num_groups + group[None, :]
        apart = tl.load(means + place, mask=split < num_splits, other=0.0) - mean[None, :]
        within = tl.load(spreads + place, mask=split < num_splits, other=0.0)
        squared += tl.sum(tl.where(split < num_splits, within + count * apart * apart, 0.0), axis=0)
    return mean, squared


@triton.jit
def _write(
    x, moved, centre, factor, bias, identity, key0, key1, layer, threshold, scale, y, start, end, channel, exists, quad,
    channels, COLUMNS: constexpr, ROWS: constexpr, REAL: constexpr, SILU: constexpr, DROPS: constexpr,
):  # fmt: skip
    """y of some pixels."""
    for row in range(start, end, ROWS):
        place, there = tile(row, end, channel, exists, channels, ROWS)
        value = tl.load(x + place, mask=there, other=0.0).to(REAL) + moved[None, :]
        value = (value - centre[None, :]) * factor[None, :] + bias[None, :]
        if SILU:
            value = value / (1.0 + tl.exp(-value))
        if DROPS:
            stays = kept(identity, key0, key1, layer, threshold, row, channels, quad, ROWS, COLUMNS)
            value = tl.where(stays, value * scale, 0.0)
        tl.store(y + place, value, mask=there)


@triton.jit(do_not_specialize=NOT_SPECIALISED)
def forward_kernel(
    x, shift, weight, bias, counters, y, means, rstds, split_means, split_spreads,
    num_pixels, num_groups, num_splits, split_pixels, eps, key0, key1, layer, threshold, scale,
    GROUP: constexpr, PADDED: constexpr, COLUMNS: constexpr, ROWS: constexpr, REAL: constexpr,
    SHIFTED: constexpr, SILU: constexpr, DROPS: constexpr, SUMS: constexpr, APPLIES: constexpr,
):  # fmt: skip
    """Grid: (samples, blocks of groups, splits). SUMS: moments of a split; APPLIES: y; both where one split is all.

    x, y: (B, H * W, C); shift: (B, C); counters: (B,); means, rstds: (B, groups); split_*: (B, splits, groups).
    """
    sample, block, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    start, end, channels = split * split_pixels, tl.minimum((split + 1) * split_pixels, num_pixels), num_groups * GROUP
    channel, exists = channels_of(block, 1, GROUP, PADDED, COLUMNS)
    group = block * (COLUMNS // PADDED) + tl.arange(0, COLUMNS // PADDED)
    moved = row_of(shift + sample * channels, channel, exists, SHIFTED, REAL)
    x += sample * num_pixels * channels
    split_means += sample * num_splits * num_groups
    split_spreads += sample * num_splits * num_groups
    if SUMS:
        mean, squared = _moments(x, moved, start, end, channel, exists, channels, GROUP, PADDED, COLUMNS, ROWS, REAL)
        tl.store(split_means + split * num_groups + group, mean)
        tl.store(split_spreads + split * num_groups + group, squared)
    else:
        mean, squared = _joined_moments(
            split_means, split_spreads, group, num_groups, num_pixels, num_splits, split_pixels, GROUP, REAL
        )
    if APPLIES:
        identity = tl.load(counters + sample) if DROPS else sample
        rstd = 1.0 / tl.sqrt(squared / (num_pixels * GROUP) + eps)
        if split == 0:
            tl.store(means + sample * num_groups + group, mean)
            tl.store(rstds + sample * num_groups + group, rstd)
        _write(
            x, moved, spread(mean, PADDED, COLUMNS),
            spread(rstd, PADDED, COLUMNS) * row_of(weight, channel, exists, True, REAL),
            row_of(bias, channel, exists, True, REAL), identity, key0, key1, layer, threshold, scale,
            y + sample * num_pixels * channels, start, end, channel, exists,
            channels_of(block, 4, GROUP, PADDED, COLUMNS)[0], channels, COLUMNS, ROWS, REAL, SILU, DROPS,
        )  # fmt: skip
