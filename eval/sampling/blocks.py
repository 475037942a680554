"""Blocks: the unit of work, of resumption and of distribution. Block k holds image ids k*size .. of one evaluation.

Each finished block is one file of features, written atomically, so an evaluation killed in the middle goes on where
it was and, since blocks are combined in the order of their ids, ends at the same number bit for bit.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.files import write_atomic
from data_pipeline.storage.shards import Dataset
from eval.metrics.extractor import FeatureExtractor, build_extractor
from eval.protocol import Protocol
from eval.runs import open_images
from eval.sampling.images import bits_per_dim, load_network, sample_images
from eval.settings import EvaluationSettings
from models.snapshot import Snapshot

NUM_PREVIEW_IMAGES = 64
"""The first images of every evaluation are kept for its grid."""


class BlockWorker:
    """Works out blocks of one evaluation: samples and their features, or scores of real images.

    One lives in each process that takes part.
    """

    def __init__(self, checkpoint: Path, protocol: Protocol, folder: Path, settings: EvaluationSettings):
        """Cheap: networks and data are loaded by the first block, so that what they raise is raised by `run`."""
        self._checkpoint, self._protocol, self._folder, self._settings = checkpoint, protocol, folder, settings
        settings.prepare_process()

    @cached_property
    def _snapshot(self) -> Snapshot:
        return load_network(self._checkpoint, self._protocol, self._settings.torch_device())

    @cached_property
    def _extractor(self) -> FeatureExtractor:
        return build_extractor(self._protocol, self._settings.weights_folder, self._settings.torch_device())

    @cached_property
    def _images(self) -> Dataset:
        images = open_images(self._checkpoint.parent.parent)
        if len(images) < self._protocol.num_samples:
            raise ValueError(f"{self._protocol.name} scores more images than the {len(images)} of the data set")
        return images

    def run(self, block: int, beat: Callable[[], None] = lambda: None) -> int:
        """Work out one block; returns the number of images. A block that is there already is left alone.

        beat: called after every step of sampling; what it raises ends the block.
        """
        size = self._settings.block_images
        first = block * size
        count = min(size, self._protocol.num_samples - first)
        if block_path(self._folder, block).exists():
            return count
        work = self._features if self._protocol.needs_samples else self._scores
        rows = work(block, first, count, beat)
        _write(block_path(self._folder, block), rows)
        return count

    def _features(self, block: int, first: int, count: int, beat: Callable[[], None]) -> np.ndarray:
        at_once = min(self._settings.batch_size or self._settings.block_images, self._settings.block_images)
        images = sample_images(self._snapshot, self._protocol, first, count, at_once, beat)
        if first < NUM_PREVIEW_IMAGES:
            _write(preview_path(self._folder, block), images[: NUM_PREVIEW_IMAGES - first].numpy())
        # float32 is what the networks produce: nothing is lost, and half the bytes are written.
        return self._extractor(images).to(torch.float32).numpy()

    def _scores(self, block: int, first: int, count: int, beat: Callable[[], None]) -> np.ndarray:
        """Bits per dimension of `count` images of the data set, (count, 1) float64: evenly spaced ones, in order."""
        places = [index * len(self._images) // self._protocol.num_samples for index in range(first, first + count)]
        pixels = torch.from_numpy(np.stack([self._images.read(place) for place in places])).permute(0, 3, 1, 2)
        return bits_per_dim(self._snapshot, self._protocol, pixels, first, beat).numpy()[:, None]


def num_blocks(protocol: Protocol, settings: EvaluationSettings) -> int:
    return -(-protocol.num_samples // settings.block_images)


def missing_blocks(folder: Path, protocol: Protocol, settings: EvaluationSettings) -> list[int]:
    """Blocks not yet finished, in order. One whose files are damaged is dropped, to be done again."""
    missing = []
    for block in range(num_blocks(protocol, settings)):
        first = block * settings.block_images
        count = min(settings.block_images, protocol.num_samples - first)
        whole = _num_rows(block_path(folder, block)) == count
        if protocol.needs_samples and first < NUM_PREVIEW_IMAGES:
            num_shown = min(count, NUM_PREVIEW_IMAGES - first)
            whole = whole and _num_rows(preview_path(folder, block)) == num_shown
        if not whole:
            block_path(folder, block).unlink(missing_ok=True)
            missing.append(block)
    return missing


def _num_rows(path: Path) -> int:
    """Rows of a block's file; 0 if it is not there or damaged."""
    try:
        rows = np.load(path, allow_pickle=False)
        return len(rows) if np.isfinite(rows).all() else 0
    except (OSError, ValueError, TypeError, EOFError):
        return 0


def read_features(folder: Path, protocol: Protocol, settings: EvaluationSettings) -> np.ndarray:
    """All features (num_samples, D) float32 in the order of image ids."""
    blocks = range(num_blocks(protocol, settings))
    features = np.concatenate([np.load(block_path(folder, block), allow_pickle=False) for block in blocks])
    if len(features) != protocol.num_samples:
        raise ValueError(f"{folder} holds {len(features)} rows, {protocol.name} needs {protocol.num_samples}")
    return features


def read_preview(folder: Path) -> Tensor | None:
    """The first sampled images, uint8 (<= 64, C, H, W); None if the protocol samples none."""
    parts = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("preview-*.npy"))]
    return torch.from_numpy(np.concatenate(parts)) if parts else None


def block_path(folder: Path, block: int) -> Path:
    return folder / f"block-{block:06d}.npy"


def preview_path(folder: Path, block: int) -> Path:
    return folder / f"preview-{block:06d}.npy"


def _write(path: Path, array: np.ndarray) -> None:
    write_atomic(path, lambda temporary: np.save(temporary, array, allow_pickle=False))
