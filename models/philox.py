"""Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A value is a function of (seed, stream name, row index, draw, position) alone. No state, no order of calls, no
batch: the same bits on every device, for any number of workers.
"""

from __future__ import annotations

import functools
import hashlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from common.checks import check_whole

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_NUM_ROUNDS = 10
_CHUNK = 1 << 15
"""Counters worked on at a time: small enough for a CPU's cache, large enough to hide the cost of a call."""


def philox_4x32(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Encrypt four words of counter with two words of key: the bijection Philox 4x32 with 10 rounds.

    counter: four int64 tensors of one shape with values in [0, 2^32); key: two such numbers.
    Returns four int64 tensors with values in [0, 2^32).
    """
    key0, key1 = key
    if counter[0].is_cuda:
        return list(_cuda_kernel()(*counter, key0=key0, key1=key1))
    return [torch.from_numpy(word) for word in _on_cpu([word.numpy() for word in counter], key)]


def _on_cpu(counter: Sequence[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """The same by NumPy, which multiplies and shifts whole words twice as fast as torch does."""
    # Unsigned, a product of two words fits, and its upper half is a shift away.
    word0, word1, word2, word3 = (np.array(word, dtype=np.uint64, order="C") for word in counter)
    product0, product1 = np.empty_like(word0), np.empty_like(word0)
    mask, half = np.uint64(_MASK32), np.uint64(32)
    for number in range(_NUM_ROUNDS):
        np.multiply(word0, np.uint64(_MULTIPLIERS[0]), out=product0)
        np.multiply(word2, np.uint64(_MULTIPLIERS[1]), out=product1)
        for word, product, other, place in ((word0, product1, word1, 0), (word2, product0, word3, 1)):
            np.right_shift(product, half, out=word)
            word ^= other
            word ^= np.uint64((key[place] + number * _WEYL[place]) & _MASK32)
            word &= mask
        # Words 1 and 3 are the lower halves; what lies above them is cut off where they are used.
        word1, product1, word3, product0 = product1, word1, product0, word3
    word1 &= mask
    word3 &= mask
    return [word.view(np.int64) for word in (word0, word1, word2, word3)]


@functools.cache
def _cuda_kernel() -> Callable[..., tuple[Tensor, ...]]:
    """The same as one kernel: a GPU needs longer to start the hundred of a call than for their work.

    torch compiles it at first use, without a compiler of the system's.
    """
    body = f"""
        unsigned int word0 = c0, word1 = c1, word2 = c2, word3 = c3, k0 = key0, k1 = key1;
        for (int round = 0; round != {_NUM_ROUNDS}; ++round) {{
            unsigned int high0 = __umulhi({_MULTIPLIERS[0]}u, word0), high1 = __umulhi({_MULTIPLIERS[1]}u, word2);
            unsigned int low0 = {_MULTIPLIERS[0]}u * word0, low1 = {_MULTIPLIERS[1]}u * word2;
            word0 = high1 ^ word1 ^ k0;
            word2 = high0 ^ word3 ^ k1;
            word1 = low1;
            word3 = low0;
            k0 += {_WEYL[0]}u;
            k1 += {_WEYL[1]}u;
        }}
        out0 = word0;
        out1 = word1;
        out2 = word2;
        out3 = word3;
    """
    names = "T c0, T c1, T c2, T c3, T key0, T key1, T& out0, T& out1, T& out2, T& out3"
    code = f"template <typename T> void philox_4x32({names}) {{{body}}}"
    return torch.cuda.jiterator._create_multi_output_jit_fn(code, num_outputs=4, key0=0, key1=0)


def stream_key(seed: int, stream: str) -> tuple[int, int]:
    """The two 32-bit key words of a stream: 64 bits of BLAKE2b over the seed, any integer, and the stream's name."""
    digest = hashlib.blake2b(f"{operator.index(seed)}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def uniform_bits(seed: int, stream: str, index: Tensor, draw: int, num: int) -> Tensor:
    """Random 32-bit words, (B, num) int64 in [0, 2^32), on index's device.

    seed: any integer. stream: a name; streams are independent. index: (B,) int64, the identity of each row.
    draw: in [0, 2^32), for instance the timestep. Row b depends on (seed, stream, index[b], draw) alone, and
    asking for more words continues the row. Raises ValueError if index is not (B,) int64 or draw is out of
    range, TypeError for a seed that is not an integer.
    """
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(f"index must be a (B,) int64 tensor, got {tuple(index.shape)} {index.dtype}")
    if not 0 <= draw <= _MASK32:
        raise ValueError(f"draw is {draw}: it must lie in [0, 2^32)")
    return bits_of_key(stream_key(seed, stream), index, draw, num)


def bits_of_key(key: tuple[int, int], index: Tensor, draw: int, num: int) -> Tensor:
    """`uniform_bits` of the stream that `stream_key` gave this key to, without its checks."""
    words = torch.empty((index.shape[0], -(-num // 4), 4), dtype=torch.int64, device=index.device)
    for rows, blocks, block_words in _blocks(key, index, draw, words.shape[1]):
        torch.stack(block_words, dim=2, out=words[rows, blocks])
    return words.flatten(1)[:, :num]


def bits_at_least(threshold: int, key: tuple[int, int], index: Tensor, draw: int, num: int) -> Tensor:
    """Whether the words of `bits_of_key` are at least `threshold`: (B, num) bool, an eighth of the memory."""
    found = torch.empty((index.shape[0], -(-num // 4), 4), dtype=torch.bool, device=index.device)
    for rows, blocks, block_words in _blocks(key, index, draw, found.shape[1]):
        for place, word in enumerate(block_words):
            torch.ge(word, threshold, out=found[rows, blocks, place])
    return found.flatten(1)[:, :num]


def _blocks(
    key: tuple[int, int], index: Tensor, draw: int, num_blocks: int
) -> Iterator[tuple[slice, slice, list[Tensor]]]:
    """Rows, blocks of these rows, and their four words, each (rows, blocks) int64: a chunk at a time on a CPU."""
    chunk = _CHUNK if index.device.type == "cpu" else max(1, index.shape[0] * num_blocks)
    num_rows, num_columns = max(1, chunk // max(1, num_blocks)), min(chunk, num_blocks)
    for row in range(0, index.shape[0], num_rows):
        identity = index[row : row + num_rows, None]
        for start in range(0, num_blocks, num_columns):
            position = torch.arange(start, min(start + num_columns, num_blocks), device=index.device)
            counter = (position, torch.full_like(position, draw), identity & _MASK32, (identity >> 32) & _MASK32)
            words = philox_4x32(torch.broadcast_tensors(*counter), key)
            yield slice(row, row + num_rows), slice(start, start + num_columns), words


def uniform(
    seed: int,
    stream: str,
    index: Tensor,
    shape: Sequence[int],
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers in [0, 1): (B, *shape) in float32 (24 random bits) or float64 (32 random bits)."""
    bits = uniform_bits(seed, stream, index, draw, math.prod(shape))
    if dtype == torch.float32:
        values = (bits >> 8).to(dtype) * 2.0**-24
    elif dtype == torch.float64:
        values = bits.to(dtype) * 2.0**-32
    else:
        raise ValueError(f"dtype is {dtype}: it must be torch.float32 or torch.float64")
    return values.reshape(index.shape[0], *shape)


def normal(
    seed: int,
    stream: str,
    index: Tensor,
    shape: Sequence[int],
    draw: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers, (B, *shape) in dtype, by the Box-Muller transform of pairs of words.

    Computed in float64 and rounded once: devices whose logarithms differ in the last bit of a double still
    agree in float32. Largest magnitude possible: 6.77.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}: it must be a floating one")
    num = math.prod(shape)
    num_pairs = -(-num // 2)
    bits = uniform_bits(seed, stream, index, draw, 2 * num_pairs).view(index.shape[0], num_pairs, 2)
    # The half keeps the argument of the logarithm away from 0.
    radius = bits[..., 0].to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    angle = bits[..., 1].to(torch.float64).mul_(2.0 * math.pi * 2.0**-32)
    values = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).to(dtype)
    return values.view(index.shape[0], 2 * num_pairs)[:, :num].reshape(index.shape[0], *shape)


def randint(seed: int, stream: str, index: Tensor, high: int, draw: int = 0) -> Tensor:
    """Uniform integers in [0, high), (B,) int64; 1 <= high < 2^63. Bias below high / 2^63."""
    check_whole("high", high, 1, 2**63 - 1)
    bits = uniform_bits(seed, stream, index, draw, 2)
    return ((bits[:, 0] >> 1) << 32 | bits[:, 1]) % high
