"""One evaluation: a checkpoint, a bound protocol, and the data set it is compared with -> a result."""

import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import read_json, write_json_atomic
from eval.backlog import Job
from eval.errors import NOT_FINITE, ReportAlive
from eval.metrics.extractor import FeatureExtractor, build_extractor
from eval.metrics.metric import METRICS, Scoring
from eval.metrics.reference import ReferenceCache, reference_folder
from eval.protocol import Protocol
from eval.results import library_versions
from eval.runs import open_images
from eval.sampling.blocks import BlockWorker, missing_blocks, num_blocks, read_features, read_preview
from eval.settings import EvaluationSettings

_SECONDS = "seconds.json"
RunBlocks = Callable[[Path, Protocol, Path, EvaluationSettings, list[int], ReportAlive], Iterable[int]]
"""(checkpoint, protocol, folder, settings, blocks, report_alive) -> yields each block when its file is there."""


def run_here(
    checkpoint: Path,
    protocol: Protocol,
    folder: Path,
    settings: EvaluationSettings,
    blocks: list[int],
    report_alive: ReportAlive,
) -> Iterable[int]:
    """Blocks one after the other in this process."""
    worker = BlockWorker(checkpoint, protocol, folder, settings)
    for block in blocks:
        worker.run(block, report_alive)
        yield block


def evaluate(
    job: Job,
    settings: EvaluationSettings,
    run_blocks: RunBlocks = run_here,
    report_alive: ReportAlive = lambda: None,
) -> tuple[dict[str, Any], Tensor | None]:
    """The numbers of a checkpoint under a protocol, and the first sampled images, uint8 (<= 64, C, H, W), if any.

    Raises BlockedError if weights, an imported reference or the data are missing.
    """
    started = time.monotonic()
    protocol, reference = job.protocol, ReferenceCache(reference_folder(job.run_directory.parent))
    folder = job.work_folder / f"blocks-of-{settings.block_images}"
    folder.mkdir(parents=True, exist_ok=True)
    settings.prepare_process()
    extractor = None
    if protocol.needs_samples:
        reference.check_imported(protocol)
        # Built here although the workers build their own: weights that are missing are noticed before any work.
        extractor = build_extractor(protocol, settings.weights_folder, settings.torch_device())
    missing = missing_blocks(folder, protocol, settings)
    seconds_before = _read_seconds(folder)
    for _ in run_blocks(job.checkpoint, protocol, folder, settings, missing, report_alive):
        # Kept with the blocks: the cost of a number is that of all sessions that worked on it.
        write_json_atomic(folder / _SECONDS, seconds_before + time.monotonic() - started)
        report_alive()
    sampling_seconds = seconds_before + time.monotonic() - started
    scoring = _scoring(job, settings, read_features(folder, protocol, settings), reference, extractor, report_alive)
    numbers = METRICS[protocol.metric].score(scoring)
    if not np.isfinite(list(numbers["values"].values())).all():
        raise ValueError(NOT_FINITE)
    cost = {
        "wall_seconds": seconds_before + time.monotonic() - started,
        "sampling_seconds": sampling_seconds,
        "images_per_second": protocol.num_samples / max(sampling_seconds, 1e-9),
        "num_blocks_resumed": num_blocks(protocol, settings) - len(missing),
    }
    return {**_identity(job, settings), **numbers, **cost}, read_preview(folder)


def discard_work(work_folder: Path) -> None:
    """Remove the blocks of an evaluation whose result is safe."""
    shutil.rmtree(work_folder, ignore_errors=True)


def _read_seconds(folder: Path) -> float:
    """What earlier sessions took; 0 if there was none."""
    try:
        return float(read_json(folder / _SECONDS))
    except (OSError, ValueError, TypeError):
        return 0.0


def _identity(job: Job, settings: EvaluationSettings) -> dict[str, Any]:
    device = torch.device(settings.torch_device())
    return {
        "provenance": read_json(job.checkpoint / "snapshot.json").get("provenance", {}),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "block_images": settings.block_images,
        "versions": library_versions(),
    }


def _scoring(
    job: Job,
    settings: EvaluationSettings,
    rows: np.ndarray,
    reference: ReferenceCache,
    extractor: FeatureExtractor | None,
    report_alive: ReportAlive,
) -> Scoring:
    """The reference's statistics or features are worked out when the metric asks for them, if they are not cached."""

    def asked_for(read: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: read(job.protocol, lambda: open_images(job.run_directory), extractor, report_alive)

    return Scoring(
        rows,
        job.protocol.seed,
        settings.num_bootstrap,
        settings.block_images,
        asked_for(reference.statistics),
        asked_for(reference.features),
        report_alive,
    )
