"""A keyed pseudo-random permutation of [0, n), evaluated one point at a time.

The swap-or-not shuffle of Hoang, Morris and Rogaway ("An Enciphering Scheme Based on a Card Shuffle", CRYPTO 2012):
in each round a card x and its mirror image K - x (mod n) change places or not, as one pseudo-random bit of the pair
says. It works for every n without cycle walking and needs no memory, so position 10**9 of a shuffle costs as much as
position 0. All arithmetic is on 64-bit words modulo 2**64: the same result on every machine and numpy version.
"""

import numpy as np

_ROUND_CONSTANT = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_TOP_BIT = np.uint64(63)


def mix64(values: np.ndarray) -> np.ndarray:
    """Bijective mixing of 64-bit words (the SplitMix64 finaliser of Steele, Lea and Flood 2014); uint64 in and out."""
    values = values ^ (values >> np.uint64(30))
    values *= _MIX_1
    values ^= values >> np.uint64(27)
    values *= _MIX_2
    values ^= values >> np.uint64(31)
    return values


def combine_keys(key: int | np.ndarray, values: np.ndarray) -> np.ndarray:
    """New uint64 keys from a key and int64 values, broadcast together; different values give unrelated keys."""
    spread = mix64(np.asarray(values).astype(np.uint64) * _ROUND_CONSTANT + _ROUND_CONSTANT)
    return mix64(np.asarray(key, dtype=np.uint64) ^ spread)


def num_rounds_for(largest_length: int) -> int:
    """Rounds after which any two cards of a deck of `largest_length` are as good as independent.

    The paper's bound for two queries, n**1.5 * (1/2 + 1/n)**(rounds / 2), needs 3 log2(n) rounds to reach one;
    the other 24 rounds push it below 2**-12, and cost little.
    """
    return 24 + 3 * int(largest_length).bit_length()


def permute(positions: np.ndarray, lengths: np.ndarray, keys: np.ndarray, num_rounds: int) -> np.ndarray:
    """Where each position lands in its own keyed shuffle.

    positions: (b,) int64 in [0, lengths); lengths: (b,) int64 in [1, 2**62]; keys: (b,) uint64. Returns (b,) int64.
    Elements of equal length and key see the same permutation of [0, length), whatever else is in the batch.
    """
    lengths = lengths.astype(np.uint64)
    cards = positions.astype(np.uint64)
    round_keys = keys.astype(np.uint64)
    for _ in range(num_rounds):
        round_keys = round_keys + _ROUND_CONSTANT
        words = mix64(round_keys)
        # cards < lengths and the remainder < lengths, so this never wraps below zero.
        mirrored = words % lengths + lengths - cards
        mirrored -= np.where(mirrored >= lengths, lengths, np.uint64(0))
        swap = mix64(words ^ np.maximum(cards, mirrored)) >> _TOP_BIT
        cards = np.where(swap.astype(bool), mirrored, cards)
    return cards.astype(np.int64)
