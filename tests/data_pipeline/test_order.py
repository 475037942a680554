"""The five properties of the order of samples, over many sizes, batches, worlds, seeds and resume points."""

import itertools
import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipeline.order import MAX_COUNTER, SampleOrder
from data_pipeline.permutation import num_rounds_for, permute

WORLDS = (1, 2, 3, 4, 7)

shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)
batches = st.integers(1, 60)
seeds = st.integers(0, 2**63)


def one_epoch(order: SampleOrder, epoch: int) -> np.ndarray:
    return order.samples(np.arange(epoch * order.num_samples, (epoch + 1) * order.num_samples))


@settings(deadline=None, max_examples=60)
@given(shard_sizes, batches, seeds, st.integers(0, 10**6))
def test_each_epoch_is_exactly_once(sizes: list[int], batch: int, seed: int, epoch: int) -> None:
    order = SampleOrder(sizes, seed, batch, "digest")
    np.testing.assert_array_equal(np.sort(one_epoch(order, epoch)), np.arange(sum(sizes)))


@settings(deadline=None, max_examples=60)
@given(shard_sizes, batches, st.integers(0, 10**9), st.integers(1, 5))
def test_the_ranks_of_any_world_share_out_the_same_steps(
    sizes: list[int], batch: int, start: int, num_steps: int
) -> None:
    order = SampleOrder(sizes, 7, batch, "digest")
    for step in range(start, start + num_steps):
        whole = order.counters(step)
        np.testing.assert_array_equal(np.sort(whole), np.arange(step * batch, (step + 1) * batch))
        for world_size in (w for w in WORLDS if w <= batch):
            parts = [order.counters(step, rank, world_size) for rank in range(world_size)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            joined = np.concatenate([order.samples(part) for part in parts])
            np.testing.assert_array_equal(joined, order.samples(whole))


@settings(deadline=None, max_examples=30)
@given(shard_sizes, st.integers(1, 6), st.integers(1, 9), st.integers(0, 10**9))
def test_slices_of_a_batch_stay_on_one_worker_and_change_nothing_else(
    sizes: list[int], slice_images: int, num_slices: int, step: int
) -> None:
    batch = slice_images * num_slices
    whole = SampleOrder(sizes, 7, batch, "digest").counters(step)
    order = SampleOrder(sizes, 7, batch, "digest", slice_images)
    for world_size in (w for w in WORLDS if w <= num_slices):
        parts = [order.counters(step, rank, world_size) for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert all(len(part) and len(part) % slice_images == 0 for part in parts)
        assert max(map(len, parts)) - min(map(len, parts)) <= slice_images
    with pytest.raises(ValueError, match=f"world_size must lie in .1, {num_slices}., got {num_slices + 1}"):
        order.counters(step, 0, num_slices + 1)


@settings(deadline=None, max_examples=30)
@given(shard_sizes, batches, st.integers(1, 30), st.sampled_from(WORLDS), st.sampled_from(WORLDS))
def test_a_run_resumed_in_another_world_continues_the_same_sequence(
    sizes: list[int], batch: int, resume_at: int, before: int, after: int
) -> None:
    def run(first: int, stop: int, world_size: int) -> list[int]:
        order = SampleOrder(sizes, 3, batch, "digest")
        world_size = min(world_size, batch)
        steps = itertools.product(range(first, stop), range(world_size))
        return [int(i) for step, rank in steps for i in order.samples(order.counters(step, rank, world_size))]

    assert run(0, resume_at, before) + run(resume_at, 35, after) == run(0, 35, 1)


@settings(deadline=None, max_examples=30)
@given(shard_sizes, batches)
def test_a_batch_of_draws_gives_what_the_draws_give_alone(sizes: list[int], batch: int) -> None:
    order = SampleOrder(sizes, 11, batch, "digest")
    counters = np.random.default_rng(0).integers(0, 5 * order.num_samples, 40)
    alone = [int(order.samples(np.array([counter]))[0]) for counter in counters]
    np.testing.assert_array_equal(order.samples(counters), alone)
    np.testing.assert_array_equal(order.samples(counters.reshape(8, 5)), np.reshape(alone, (8, 5)))


@settings(deadline=None, max_examples=40)
@given(shard_sizes, batches, st.integers(0, 1000))
def test_every_step_takes_as_many_draws_from_each_lane(sizes: list[int], batch: int, step: int) -> None:
    order = SampleOrder(sizes, 0, batch, "digest")
    lanes, counts = np.unique(order.counters(step) % order.num_lanes, return_counts=True)
    assert lanes.size == order.num_lanes <= order.num_samples
    assert set(counts) == {batch // order.num_lanes}


def test_the_order_depends_on_digest_seed_and_batch_alone() -> None:
    def first_epoch(seed: int, batch: int, digest: str) -> tuple[int, ...]:
        return tuple(one_epoch(SampleOrder([30, 30, 30], seed, batch, digest), 0))

    variants = [(0, 8, "a"), (1, 8, "a"), (0, 9, "a"), (0, 8, "b")]
    assert len({first_epoch(*variant) for variant in variants}) == len(variants)
    assert first_epoch(0, 8, "a") == first_epoch(0, 8, "a")


def test_the_order_is_the_same_in_another_process_and_in_a_year() -> None:
    # A change of these numbers changes every run that ever was started: raise ORDER_VERSION and say so.
    order = SampleOrder([5, 9, 3], seed=0, global_batch_size=4, digest="d")
    expected = [int(i) for i in order.samples(np.arange(17))]
    program = (
        "import numpy; from data_pipeline.order import SampleOrder;"
        "print(SampleOrder([5, 9, 3], 0, 4, 'd').samples(numpy.arange(17)).tolist())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "5"}
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert printed.stdout.strip() == str(expected) == "[6, 5, 15, 3, 13, 8, 14, 0, 9, 7, 16, 2, 11, 12, 1, 4, 10]"


def test_epochs_differ() -> None:
    order = SampleOrder([50, 50], 0, 10, "digest")
    assert len({tuple(one_epoch(order, epoch)) for epoch in range(20)}) == 20


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("epoch", [0, 1, 17])
def test_a_worker_needs_about_its_share_of_the_shards(world_size: int, epoch: int) -> None:
    sizes = np.random.default_rng(0).integers(50, 150, 84).tolist()
    order = SampleOrder(sizes, 5, 56, "digest")
    owner = np.repeat(np.arange(84), sizes)
    mean_share = sum(sizes) / world_size
    first, last = epoch * order.num_samples // 56, (epoch + 1) * order.num_samples // 56
    for rank in range(world_size):
        inside = [order.counters(step, rank, world_size) for step in range(first, last + 1)]
        counters = np.concatenate(inside)
        counters = counters[counters // order.num_samples == epoch]
        touched = set(owner[order.samples(counters)])
        announced = order.epoch_shards(epoch, rank, world_size)
        assert touched == set(announced)
        assert len(announced) == len(set(announced))
        # All but the first and last shard belong to the worker alone.
        assert sum(sizes[s] for s in announced[1:-1]) <= mean_share + 56


def test_more_workers_than_shards_and_one_shard_work() -> None:
    for sizes in ([100], [60, 40]):
        order = SampleOrder(sizes, 0, 21, "digest")
        drawn = [order.samples(order.counters(s, r, 7)) for s in range(100) for r in range(7)]
        counts = np.bincount(np.concatenate(drawn), minlength=100)
        np.testing.assert_array_equal(counts, 21)


def test_a_billion_samples_take_bounded_time_and_memory() -> None:
    sizes = [1000] * 1_000_000
    tracemalloc.start()
    started = time.process_time()
    order = SampleOrder(sizes, 0, 256, "digest")
    for step in (0, 1, 10**6, 10**6 + 1, 10**12, MAX_COUNTER // 256 - 1):
        for rank in range(4):
            samples = order.samples(order.counters(step, rank, 4))
            assert samples.min() >= 0
            assert samples.max() < 10**9
    seconds, peak_bytes = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 200e6
    assert seconds < 30


def test_far_positions_are_exact() -> None:
    order = SampleOrder([7, 5], 0, 5, "digest")
    last_epoch = MAX_COUNTER // 12 - 1
    np.testing.assert_array_equal(np.sort(one_epoch(order, last_epoch)), np.arange(12))
    steps = np.concatenate([order.counters(MAX_COUNTER // 5 - 1, rank, 5) for rank in range(5)])
    assert steps.max() < MAX_COUNTER


@pytest.mark.parametrize(
    ("sizes", "batch"),
    [([40], 8), ([10] * 4, 8), ([3] * 13 + [1], 8), ([40], 40), ([40], 30), ([40], 1), ([4] * 10, 64)],
)
def test_any_sample_is_equally_likely_at_any_place_of_an_epoch(sizes: list[int], batch: int) -> None:
    """Chi-squared over (sample, place) of 3,000 epochs, and over which pairs of samples follow each other."""
    order = SampleOrder(sizes, 1, batch, "digest")
    num_epochs = 3000
    draws = order.samples(np.arange(40 * num_epochs)).reshape(num_epochs, 40)
    place_counts = np.zeros((40, 40))
    np.add.at(place_counts, (draws, np.arange(40)[None, :]), 1)
    statistic = ((place_counts - num_epochs / 40) ** 2 / (num_epochs / 40)).sum()
    assert 1e-6 < stats.chi2.sf(statistic, 39 * 39) < 1 - 1e-6


def test_with_one_shard_and_one_lane_pairs_are_uniform_too() -> None:
    order = SampleOrder([12], 1, 1, "digest")
    draws = order.samples(np.arange(12 * 20_000)).reshape(-1, 12)
    counts = np.zeros((12, 12))
    np.add.at(counts, (draws[:, 0], draws[:, 1]), 1)
    assert (np.diag(counts) == 0).all()
    pairs = counts[~np.eye(12, dtype=bool)]
    assert stats.chisquare(pairs).pvalue > 1e-6


def test_small_shuffles_reach_every_permutation_equally_often() -> None:
    num_keys = 60_000
    keys = np.random.default_rng(0).integers(0, 2**63, num_keys).astype(np.uint64)
    for length in (2, 3, 4, 5):
        lengths = np.full(num_keys, length)
        landed = [permute(np.full(num_keys, i), lengths, keys, num_rounds_for(length)) for i in range(length)]
        code = sum(place * length**i for i, place in enumerate(landed))
        values, counts = np.unique(code, return_counts=True)
        assert len(values) == {2: 2, 3: 6, 4: 24, 5: 120}[length]
        assert stats.chisquare(counts).pvalue > 1e-6


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation_of_any_length(length: int, key: int) -> None:
    landed = permute(np.arange(length), np.full(length, length), np.full(length, key, dtype=np.uint64), 40)
    np.testing.assert_array_equal(np.sort(landed), np.arange(length))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SampleOrder([], 0, 4, "d"), "shard_sizes"),
        (lambda: SampleOrder([3, 0], 0, 4, "d"), "shard_sizes"),
        (lambda: SampleOrder([3], 0, 0, "d"), "global_batch_size"),
        (lambda: SampleOrder([9], 0, 4, "d").counters(0, 0, 5), "world_size"),
        (lambda: SampleOrder([9], 0, 4, "d").counters(0, 2, 2), "rank"),
        (lambda: SampleOrder([9], 0, 4, "d").counters(-1), "step"),
        (lambda: SampleOrder([9], 0, 4, "d").counters(2**62), "step"),
        (lambda: SampleOrder([9], 0, 4, "d").samples(np.array([2**62])), "counters"),
    ],
)
def test_wrong_values_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
