"""Which sample is draw c of the infinite training sequence: pure functions, no files, no state.

The order depends on (digest, seed, G, ORDER_VERSION) alone; rank and world size only say who takes which part of it.

Lanes. L is the largest divisor of the global batch G that is at most the number of samples N. Draw c belongs to
epoch c // N and to lane c mod L, so every step takes exactly G / L draws from each lane. An epoch lines the samples up
(shards permuted, samples permuted inside their shard) and cuts the line into L runs, one per lane, as long as the
number of draws that lane has in the epoch; the lane visits its run in a shuffled order. Hence every epoch is exact,
although epochs end in the middle of steps; and a worker, who takes neighbouring lanes, needs about 1/W of the shards
in an epoch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.checks import check_whole
from data_pipeline.permutation import combine_keys, num_rounds_for, permute

ORDER_VERSION = 1
MAX_COUNTER = 2**62
_NUM_CACHED_SHARD_PLACES = 2_000_000


@dataclass(frozen=True)
class _EpochLine:
    """The shards of one epoch in line: shard_at[p] is the p-th shard, and its samples start at starts[p]."""

    shard_at: np.ndarray
    starts: np.ndarray


class SampleOrder:
    """The order of one run. All methods are pure; the object only remembers tables that it could compute again."""

    def __init__(
        self, shard_sizes: Sequence[int], seed: int, global_batch_size: int, digest: str, slice_images: int = 1
    ) -> None:
        """shard_sizes: samples in each shard, in the manifest's order; sample indices count through them in this order.

        seed: any integer, 0 included. global_batch_size: G, images per step over all workers. digest: the manifest's.
        slice_images: a batch is handed out in slices of this many images, for those who treat slices as units; it does
        not change the order. Raises ValueError for an empty set, an empty shard, a batch size below one, or a batch
        that slices do not divide.
        """
        sizes = np.array(shard_sizes, dtype=np.int64)
        if sizes.ndim != 1 or sizes.size == 0 or sizes.min() < 1:
            raise ValueError(f"shard_sizes must be a non-empty list of numbers >= 1, got {list(shard_sizes)[:8]}")
        check_whole("global_batch_size", int(global_batch_size), 1)
        if slice_images < 1 or global_batch_size % slice_images:
            raise ValueError(f"slice_images must divide global_batch_size {global_batch_size}, got {slice_images}")
        self.seed = int(seed)
        self.global_batch_size = int(global_batch_size)
        self.slice_images = int(slice_images)
        self.digest = digest
        self.num_samples = int(sizes.sum())
        self.num_lanes = _largest_divisor_up_to(self.global_batch_size, self.num_samples)
        self._sizes = sizes
        self._first_index = np.cumsum(sizes) - sizes
        self._line_key, self._shard_key, self._lane_key = (self._key(name) for name in ("line", "shard", "lane"))
        num_cached = int(np.clip(_NUM_CACHED_SHARD_PLACES // sizes.size, 2, 256))
        self._cached_line = lru_cache(maxsize=num_cached)(self._line)

    def counters(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """The draws that `rank` of `world_size` makes in `step`: (b,) int64; ranks' b differ by at most one slice.

        Joined over the ranks in order, this is the same sequence for every world size.
        Raises ValueError if the step or rank is out of range or there are more workers than slices in a batch.
        """
        begin, end = self._slots(rank, world_size)
        if not 0 <= step <= MAX_COUNTER // self.global_batch_size - 1:
            raise ValueError(
                f"step must lie in [0, {MAX_COUNTER // self.global_batch_size - 1}] for global_batch_size="
                f"{self.global_batch_size}, got {step}"
            )
        lanes, turns = np.divmod(np.arange(begin, end, dtype=np.int64), self.global_batch_size // self.num_lanes)
        return step * self.global_batch_size + turns * self.num_lanes + lanes

    def samples(self, counters: np.ndarray) -> np.ndarray:
        """Sample index in [0, N) of each draw: counters (...) int64 in [0, 2**62) -> (...) int64 of the same shape."""
        counters = np.asarray(counters, dtype=np.int64)
        if counters.size and (counters.min() < 0 or counters.max() >= MAX_COUNTER):
            raise ValueError(
                f"counters must lie in [0, 2**62), got {counters.min()} to {counters.max()}; see SampleOrder.counters"
            )
        flat = counters.reshape(-1)
        epochs = flat // self.num_samples
        shards, offsets = self._shards_at(epochs, self._places(flat, epochs))
        keys = combine_keys(combine_keys(self._shard_key, epochs), shards)
        within = permute(offsets, self._sizes[shards], keys, num_rounds_for(int(self._sizes.max())))
        return (self._first_index[shards] + within).reshape(counters.shape)

    def epoch_shards(self, epoch: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Shards that a rank reads from in an epoch, in the order of the epoch's line: (k,) int64."""
        begin, end = self._slots(rank, world_size)
        turns = self.global_batch_size // self.num_lanes
        bounds = np.array([begin // turns, (end - 1) // turns + 1], dtype=np.int64)
        first, stop = self._run_starts(bounds, np.full(2, epoch, dtype=np.int64))
        line = self._cached_line(epoch)
        low = int(np.searchsorted(line.starts, first, side="right")) - 1
        high = int(np.searchsorted(line.starts, stop - 1, side="right"))
        return line.shard_at[low:high]

    def _slots(self, rank: int, world_size: int) -> tuple[int, int]:
        num_slices = self.global_batch_size // self.slice_images
        if not 1 <= world_size <= num_slices:
            raise ValueError(
                f"world_size must lie in [1, {num_slices}], got {world_size}: each worker needs {self.slice_images} "
                "image(s) per step; use fewer workers or a larger global_batch_size"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size - 1}], got {rank}")
        begin, end = share(num_slices, rank, world_size)
        return begin * self.slice_images, end * self.slice_images

    def _places(self, counters: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Place in the epoch's line of each draw: its lane's run, shuffled."""
        lanes = counters % self.num_lanes
        # Draws of this lane before the epoch: counters l, l + L, l + 2L, ... below the epoch's first counter.
        num_before = _num_draws(epochs * self.num_samples, lanes, self.num_lanes)
        run_lengths = _num_draws((epochs + 1) * self.num_samples, lanes, self.num_lanes) - num_before
        keys = combine_keys(combine_keys(self._lane_key, epochs), lanes)
        num_rounds = num_rounds_for(self.num_samples // self.num_lanes + 1)
        within = permute(counters // self.num_lanes - num_before, run_lengths, keys, num_rounds)
        return self._run_starts(lanes, epochs) + within

    def _run_starts(self, lanes: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Place at which each lane's run starts: the draws of all lower lanes in the epoch."""
        return _num_draws_below((epochs + 1) * self.num_samples, lanes, self.num_lanes) - _num_draws_below(
            epochs * self.num_samples, lanes, self.num_lanes
        )

    def _shards_at(self, epochs: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard that holds each place of each epoch's line, and the offset in it."""
        shards, offsets = np.empty_like(places), np.empty_like(places)
        by_epoch = np.argsort(epochs, kind="stable")
        unique_epochs, first = np.unique(epochs[by_epoch], return_index=True)
        for epoch, rows in zip(unique_epochs, np.split(by_epoch, first[1:]), strict=False):
            line = self._cached_line(int(epoch))
            positions = np.searchsorted(line.starts, places[rows], side="right") - 1
            shards[rows] = line.shard_at[positions]
            offsets[rows] = places[rows] - line.starts[positions]
        return shards, offsets

    def _line(self, epoch: int) -> _EpochLine:
        shards = np.arange(self._sizes.size, dtype=np.int64)
        keys = combine_keys(combine_keys(self._line_key, np.full_like(shards, epoch)), shards)
        # Sorting by keys of our own, not a numpy generator: numpy may change a generator's stream between versions.
        shard_at = np.argsort(keys, kind="stable")
        sizes = self._sizes[shard_at]
        return _EpochLine(shard_at=shard_at, starts=np.cumsum(sizes) - sizes)

    def _key(self, purpose: str) -> int:
        text = f"order {ORDER_VERSION}|{self.digest}|{int(self.seed)}|{self.global_batch_size}|{purpose}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def share(num_slices: int, rank: int, world_size: int) -> tuple[int, int]:
    """The slices [begin, end) of a batch that a worker has; workers' numbers of slices differ by at most one."""
    return rank * num_slices // world_size, (rank + 1) * num_slices // world_size


def _num_draws(limit: np.ndarray, lanes: np.ndarray, num_lanes: int) -> np.ndarray:
    """How many counters below `limit` belong to each lane."""
    return limit // num_lanes + (lanes < limit % num_lanes)


def _num_draws_below(limit: np.ndarray, lanes: np.ndarray, num_lanes: int) -> np.ndarray:
    """How many counters below `limit` belong to any lane lower than the given one."""
    return lanes * (limit // num_lanes) + np.minimum(lanes, limit % num_lanes)


def _largest_divisor_up_to(number: int, limit: int) -> int:
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
