"""Batches of images for one worker, decoded ahead of need by threads.

Threads, not processes: libjpeg-turbo and zlib let go of the interpreter lock, and threads decode straight into the
batch without a copy between processes.
"""

import itertools
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_pipeline.order import SampleOrder
from data_pipeline.storage.dataset import Dataset

_PLANNED_SAMPLES = 2048
"""Samples whose order is computed in one go: numpy costs time per call, not per element"""
_MIN_STEPS_AHEAD = 8
"""Steps whose shards are known, and fetched, before they are decoded"""
_NUM_SLICES_PER_THREAD = 2


@dataclass(frozen=True)
class Batch:
    """A worker's share of one step."""

    step: int
    """The step these images are for: the number of optimiser updates before it"""
    counters: torch.Tensor
    """(b,) int64, the sample counters: they decide flip, timestep and noise"""
    images: torch.Tensor
    """(b, C, H, W) uint8, on the CPU, with the strides that decoding gives (torch.channels_last)"""


@dataclass
class _Pending:
    step: int
    counters: np.ndarray
    images: torch.Tensor
    slices: list["Future[None]"]


class BatchStream:
    """An endless iterator of batches from `start_step` on; the same for any number of threads and prefetched batches.

    An error in a thread, such as DamagedDataError, is raised by the next() that would have returned the batch.
    Close it, or use it as a context manager: it owns threads.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: SampleOrder,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        num_threads: int = 2,
        num_prefetch_batches: int = 4,
        pin_memory: bool = False,
    ) -> None:
        """rank, world_size: whose share of each step. num_prefetch_batches: decoded ahead, at least 1.

        pin_memory: page-locked batches, for asynchronous copies to a GPU.
        Raises ValueError if the order was made for another data set or a number is out of range.
        """
        if (order.digest, order.num_samples) != (dataset.manifest.digest, len(dataset)):
            raise ValueError(
                f"the order is that of data set {order.digest[:12]} with {order.num_samples} samples, "
                f"the data set is {dataset.manifest.digest[:12]} with {len(dataset)}"
            )
        if num_threads < 1 or num_prefetch_batches < 1:
            raise ValueError(
                f"num_threads and num_prefetch_batches must be at least 1, got {num_threads}, {num_prefetch_batches}"
            )
        order.counters(start_step, rank, world_size)  # refuses a bad rank, world or step now, not in the first next()
        self.wait_seconds = 0.0
        """Total time that next() has waited for a batch"""
        self._dataset, self._order = dataset, order
        self._rank, self._world_size = rank, world_size
        self._pin_memory = pin_memory
        self._free_buffers: deque[np.ndarray] = deque()
        self._next_step = self._planned_to = start_step
        self._plan: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self._pending: deque[_Pending] = deque()
        self._num_prefetch_batches = num_prefetch_batches
        self._num_slices = num_threads * _NUM_SLICES_PER_THREAD
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._closed = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._closed:
            raise ValueError("this stream is closed; open another at the step to go on from")
        try:
            return self._next()
        except BaseException:
            # A stream that went on after a lost batch would train on fewer samples, or on those of another step.
            self.close()
            raise

    def _next(self) -> Batch:
        started = time.perf_counter()
        while len(self._pending) < self._num_prefetch_batches:
            self._submit()
        pending = self._pending.popleft()
        for part in pending.slices:
            part.result()
        self.wait_seconds += time.perf_counter() - started
        self._submit()
        return Batch(pending.step, torch.from_numpy(pending.counters), pending.images.permute(0, 3, 1, 2))

    def close(self) -> None:
        """Stop decoding and wait for the threads to end; a second call does nothing."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def __enter__(self) -> "BatchStream":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _submit(self) -> None:
        """Start to decode the next step's batch."""
        if len(self._plan) <= _MIN_STEPS_AHEAD:
            self._extend_plan()
        counters, samples = self._plan.popleft()
        images = self._empty_batch(len(samples))
        bounds = np.linspace(0, len(samples), min(self._num_slices, len(samples)) + 1).astype(int)
        slices = [
            self._pool.submit(self._decode, samples[begin:end], images[begin:end])
            for begin, end in itertools.pairwise(bounds)
        ]
        self._pending.append(_Pending(self._next_step, counters, images, slices))
        self._next_step += 1

    def _extend_plan(self) -> None:
        """Which samples the next steps need; their shards begin to be fetched."""
        num_steps = _MIN_STEPS_AHEAD + _PLANNED_SAMPLES * self._world_size // self._order.global_batch_size
        steps = range(self._planned_to, self._planned_to + num_steps)
        counters = [self._order.counters(step, self._rank, self._world_size) for step in steps]
        samples = self._order.samples(np.stack(counters))
        self._plan.extend(zip(counters, samples, strict=True))
        self._planned_to = steps.stop
        shards, first_use = np.unique(self._dataset.shards_of(samples), return_index=True)
        self._dataset.prefetch(shards[np.argsort(first_use)])

    def _decode(self, samples: np.ndarray, out: torch.Tensor) -> None:
        """out: (k, H, W, C) uint8, a part of a batch."""
        for sample, image in zip(samples, out.numpy(), strict=True):
            self._dataset.read_into(int(sample), image)

    def _empty_batch(self, num_images: int) -> torch.Tensor:
        """(b, H, W, C) uint8 of undefined content."""
        shape = (num_images, *self._dataset.image_shape)
        if self._pin_memory:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(self._recycled(shape))

    def _recycled(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array over the memory of a batch that nobody holds any more: fresh memory costs a page fault per 4 kB."""
        memory = self._free_buffers.popleft() if self._free_buffers else np.empty(shape, dtype=np.uint8)
        array = memory[...]
        # The array lives as long as any tensor or view of the batch does; then its memory is free again.
        weakref.finalize(array, self._free_buffers.append, memory).atexit = False
        return array
