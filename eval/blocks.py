"""Blocks: the unit of work, of resumption and of distribution. Block k holds image ids k*size .. of one evaluation.

Each finished block is one file of features, written atomically, so an evaluation killed in the middle goes on where
it was and, since blocks are combined in the order of their ids, ends at the same number bit for bit.
"""

import os
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.features import build_extractor
from eval.protocol import Protocol
from eval.sampling import sample_images
from eval.settings import EvaluationSettings
from models.snapshot import load_snapshot

NUM_PREVIEW_IMAGES = 64
"""The first images of every evaluation are kept for its grid."""


class BlockWorker:
    """Samples blocks of one evaluation and writes their features. One lives in each process that takes part."""

    def __init__(self, checkpoint: Path, protocol: Protocol, folder: Path, settings: EvaluationSettings):
        """Raises BlockedError if the extractor's weights are missing: before anything is sampled."""
        if settings.num_threads is not None:
            torch.set_num_threads(settings.num_threads)
        self._extractor = build_extractor(protocol, settings.weights_folder, settings.torch_device())
        self._snapshot = load_snapshot(checkpoint, settings.torch_device())
        self._protocol, self._folder, self._settings = protocol, folder, settings

    def run(self, block: int) -> int:
        """Sample and featurise one block; returns the number of images. A block that is there already is left alone."""
        size = self._settings.block_images
        first = block * size
        count = min(size, self._protocol.num_samples - first)
        if block_path(self._folder, block).exists():
            return count
        images = sample_images(self._snapshot, self._protocol, first, count, self._settings.sampling_batch_size)
        if first < NUM_PREVIEW_IMAGES:
            _write(preview_path(self._folder, block), images[: NUM_PREVIEW_IMAGES - first].numpy())
        # float32 is what the networks produce: nothing is lost, and half the bytes are written.
        _write(block_path(self._folder, block), self._extractor(images).to(torch.float32).numpy())
        return count


def num_blocks(protocol: Protocol, settings: EvaluationSettings) -> int:
    return -(-protocol.num_samples // settings.block_images)


def missing_blocks(folder: Path, protocol: Protocol, settings: EvaluationSettings) -> list[int]:
    """Blocks not yet finished, in order."""
    return [block for block in range(num_blocks(protocol, settings)) if not block_path(folder, block).exists()]


def read_features(folder: Path, protocol: Protocol, settings: EvaluationSettings) -> np.ndarray:
    """All features (num_samples, D) float32 in the order of image ids."""
    blocks = range(num_blocks(protocol, settings))
    return np.concatenate([np.load(block_path(folder, block), allow_pickle=False) for block in blocks])


def read_preview(folder: Path) -> Tensor:
    """The first images, uint8 (<= 64, C, H, W)."""
    parts = [np.load(path, allow_pickle=False) for path in sorted(folder.glob("preview-*.npy"))]
    return torch.from_numpy(np.concatenate(parts))


def block_path(folder: Path, block: int) -> Path:
    return folder / f"block-{block:06d}.npy"


def preview_path(folder: Path, block: int) -> Path:
    return folder / f"preview-{block:06d}.npy"


def _write(path: Path, array: np.ndarray) -> None:
    """All or nothing, also across a power cut: a block that exists is whole."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
