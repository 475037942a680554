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

from cluster.run_directory import checkpoint_step
from common.files import read_json, write_json_atomic
from eval.errors import NOT_FINITE
from eval.metrics.extractor import FeatureExtractor, build_extractor
from eval.metrics.intervals import frechet_interval, inception_score_interval, mean_interval, normal_interval
from eval.metrics.reference import OpenImages, ReferenceCache
from eval.metrics.scores import coverage, inception_score, kernel_distance
from eval.metrics.statistics import FeatureStatistics, statistics_distance
from eval.protocol import Protocol
from eval.results import library_versions
from eval.sampling.blocks import BlockWorker, missing_blocks, num_blocks, read_features, read_preview
from eval.settings import EvaluationSettings

_SECONDS = "seconds.json"
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
    settings.prepare_process()
    extractor = None
    if protocol.needs_samples:
        job.reference.check_imported(protocol)
        # Built here although the workers build their own: weights that are missing are noticed before any work.
        extractor = build_extractor(protocol, settings.weights_folder, settings.torch_device())
    missing = missing_blocks(folder, protocol, settings)
    seconds_before = _read_seconds(folder)
    for _ in run_blocks(job.checkpoint, protocol, folder, settings, missing, beat):
        # Kept with the blocks: the cost of a number is that of all sessions that worked on it.
        write_json_atomic(folder / _SECONDS, seconds_before + time.monotonic() - started)
        beat()
    sampling_seconds = seconds_before + time.monotonic() - started
    numbers = _score(job, read_features(folder, protocol, settings), extractor, beat)
    if not np.isfinite(list(numbers["values"].values())).all():
        raise ValueError(NOT_FINITE)
    cost = {
        "wall_seconds": seconds_before + time.monotonic() - started,
        "sampling_seconds": sampling_seconds,
        "images_per_second": protocol.num_samples / max(sampling_seconds, 1e-9),
        "num_blocks_resumed": num_blocks(protocol, settings) - len(missing),
    }
    return {**_identity(job), **numbers, **cost}, read_preview(folder)


def discard_work(work_folder: Path) -> None:
    """Remove the blocks of an evaluation whose result is safe."""
    shutil.rmtree(work_folder, ignore_errors=True)


def _read_seconds(folder: Path) -> float:
    """What earlier sessions took; 0 if there was none."""
    try:
        return float(read_json(folder / _SECONDS))
    except (OSError, ValueError, TypeError):
        return 0.0


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
    protocol, num_replicates = job.protocol, job.settings.num_bootstrap
    if extractor is None:
        value = float(features[:, 0].mean())
        interval = mean_interval(features[:, 0], value, num_replicates, protocol.seed, beat)
        return _numbers({"bits_per_dim": value}, interval)
    if protocol.metric == "inception_score":
        value, deviation = inception_score(features)
        interval = inception_score_interval(features, value, num_replicates, protocol.seed, beat)
        return _numbers({"score": value, "deviation_over_splits": deviation}, interval)
    if protocol.metric == "frechet_distance":
        return _frechet(job, features, job.reference.statistics(protocol, job.open_images, extractor, beat), beat)
    reference = job.reference.features(protocol, job.open_images, extractor, beat)
    if protocol.metric == "kernel_distance":
        value, deviation, error = kernel_distance(reference, features, protocol.seed, beat=beat)
        interval = normal_interval(value, error, "influence of each sampled image") if num_replicates else None
        numbers = _numbers({"distance": value, "deviation_over_subsets": deviation}, interval)
    else:
        covered, recalled = coverage(reference, features, beat=beat)
        value = float(covered.mean())
        interval = mean_interval(covered, value, num_replicates, protocol.seed, beat)
        numbers = _numbers({"precision": value, "recall": float(recalled.mean())}, interval)
    return {**numbers, "num_reference_images": len(reference)}


def _numbers(values: dict[str, float], interval: dict[str, Any] | None) -> dict[str, Any]:
    """The first of the values is the number, and the one the interval belongs to."""
    return {"value": next(iter(values.values())), "values": values, "interval": interval, "warnings": []}


def _frechet(job: Evaluation, features: np.ndarray, reference: FeatureStatistics, beat: Beat) -> dict[str, Any]:
    protocol, settings = job.protocol, job.settings
    statistics = FeatureStatistics.empty(features.shape[1])
    for start in range(0, len(features), settings.block_images):
        statistics.update(features[start : start + settings.block_images])
    value = statistics_distance(statistics, reference)
    beat()
    interval = frechet_interval(features, reference, value, settings.num_bootstrap, protocol.seed, beat)
    return {
        **_numbers({"distance": value}, interval),
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
