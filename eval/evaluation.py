"""One evaluation: a checkpoint, a bound protocol, and the data set it is compared with -> a result."""

import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.storage import read_json
from eval.blocks import BlockWorker, missing_blocks, num_blocks, read_features, read_preview
from eval.features import FeatureExtractor, build_extractor
from eval.intervals import frechet_interval, mean_interval
from eval.protocol import Protocol
from eval.reference import OpenImages, ReferenceCache
from eval.results import checkpoint_step, library_versions
from eval.scores import inception_score, kernel_distance, precision_recall
from eval.settings import EvaluationSettings
from eval.statistics import FeatureStatistics, statistics_distance

Beat = Callable[[], None]
"""Called now and then during long work; what it raises ends the evaluation, whose finished blocks can be resumed."""
RunBlocks = Callable[[Path, Protocol, Path, EvaluationSettings, list[int], Beat], Iterable[int]]
"""(checkpoint, protocol, folder, settings, blocks, beat) -> yields each block when its file is there."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation needs."""

    checkpoint: Path
    protocol: Protocol
    work_folder: Path
    reference: ReferenceCache
    open_images: OpenImages
    settings: EvaluationSettings


def run_here(
    checkpoint: Path, protocol: Protocol, folder: Path, settings: EvaluationSettings, blocks: list[int], beat: Beat
) -> Iterable[int]:
    """Blocks one after the other in this process."""
    worker = BlockWorker(checkpoint, protocol, folder, settings)
    for block in blocks:
        worker.run(block, beat)
        yield block


def evaluate(
    job: Evaluation, run_blocks: RunBlocks = run_here, beat: Beat = lambda: None
) -> tuple[dict[str, Any], Tensor | None]:
    """The numbers of a checkpoint under a protocol, and the first sampled images, uint8 (<= 64, C, H, W), if any.

    Raises BlockedError if weights are missing.
    """
    started = time.monotonic()
    protocol, settings = job.protocol, job.settings
    folder = job.work_folder / f"blocks-of-{settings.block_images}"
    folder.mkdir(parents=True, exist_ok=True)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    extractor = None
    if protocol.needs_samples:
        job.reference.check_imported(protocol)
        # Built here although the workers build their own: weights that are missing are noticed before any work.
        extractor = build_extractor(protocol, settings.weights_folder, settings.torch_device())
    missing = missing_blocks(folder, protocol, settings)
    for _ in run_blocks(job.checkpoint, protocol, folder, settings, missing, beat):
        beat()
    sampled = time.monotonic()
    features = read_features(folder, protocol, settings)
    numbers = _score(job, features, extractor, beat)
    finished = time.monotonic()
    num_drawn = min(len(missing) * settings.block_images, protocol.num_samples)
    cost = {
        "wall_seconds": finished - started,
        "sampling_seconds": sampled - started,
        "images_per_second": num_drawn / max(sampled - started, 1e-9),
        "num_images_drawn": num_drawn,
        "num_blocks_resumed": num_blocks(protocol, settings) - len(missing),
    }
    return {**_identity(job), **numbers, **cost}, read_preview(folder)


def discard_work(job: Evaluation) -> None:
    """Remove the blocks of an evaluation whose result is safe."""
    shutil.rmtree(job.work_folder, ignore_errors=True)


def _identity(job: Evaluation) -> dict[str, Any]:
    snapshot = read_json(job.checkpoint / "snapshot.json")
    device = torch.device(job.settings.torch_device())
    return {
        "checkpoint": job.checkpoint.name,
        "step": checkpoint_step(job.checkpoint.name),
        "protocol": job.protocol.describe(),
        "provenance": snapshot.get("provenance", {}),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "block_images": job.settings.block_images,
        "versions": library_versions(),
    }


def _score(job: Evaluation, features: np.ndarray, extractor: FeatureExtractor | None, beat: Beat) -> dict[str, Any]:
    protocol = job.protocol
    if extractor is None:
        return _bits_per_dim(job, features[:, 0])
    if protocol.metric == "inception_score":
        value, deviation = inception_score(features)
        return {"value": value, "values": {"score": value, "deviation_over_splits": deviation}, "warnings": []}
    if protocol.metric == "frechet_distance":
        return _frechet(job, features, job.reference.statistics(protocol, job.open_images, extractor, beat))
    reference = job.reference.features(protocol, job.open_images, extractor, beat)
    common: dict[str, Any] = {"num_reference_images": len(reference), "warnings": []}
    if protocol.metric == "kernel_distance":
        value, deviation = kernel_distance(reference, features, protocol.seed)
        return {"value": value, "values": {"distance": value, "deviation_over_subsets": deviation}, **common}
    precision, recall = precision_recall(reference, features)
    return {"value": precision, "values": {"precision": precision, "recall": recall}, **common}


def _bits_per_dim(job: Evaluation, scores: np.ndarray) -> dict[str, Any]:
    value = float(scores.mean())
    return {
        "value": value,
        "values": {"bits_per_dim": value},
        "interval": mean_interval(scores, value, job.settings.num_bootstrap, job.protocol.seed),
        "warnings": [],
    }


def _frechet(job: Evaluation, features: np.ndarray, reference: FeatureStatistics) -> dict[str, Any]:
    protocol, settings = job.protocol, job.settings
    statistics = FeatureStatistics.empty(features.shape[1])
    for start in range(0, len(features), settings.block_images):
        statistics.update(features[start : start + settings.block_images])
    value = statistics_distance(statistics, reference)
    return {
        "value": value,
        "values": {"distance": value},
        "interval": frechet_interval(features, reference, value, settings.num_bootstrap, protocol.seed),
        "num_reference_images": reference.count,
        "warnings": _small_sample_warnings(statistics, reference),
    }


def _small_sample_warnings(sampled: FeatureStatistics, reference: FeatureStatistics) -> list[str]:
    """A covariance from fewer images than features is singular and the distance biased upwards: say so."""
    dimension = len(sampled.mean)
    sides = (("sampled", sampled.count), ("reference", reference.count))
    return [
        f"{count} {side} images are no more than the {dimension} features: the covariance is singular and the distance "
        "biased; compare only numbers of this protocol"
        for side, count in sides
        if count <= dimension
    ]
