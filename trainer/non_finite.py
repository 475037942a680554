"""Which images gave a gradient that is not finite: written for whoever looks for the cause."""

import logging
from pathlib import Path

from cluster.launch import Worker
from cluster.run_directory import NON_FINITE
from common.files import write_json_atomic
from data_pipeline.order import SampleOrder
from data_pipeline.storage.dataset import Dataset
from trainer.engines.base import NonFiniteError
from trainer.objective import Objective

_log = logging.getLogger(__name__)


def report_non_finite(
    error: NonFiniteError,
    run_directory: Path,
    worker: Worker,
    objective: Objective,
    dataset: Dataset,
    order: SampleOrder,
) -> None:
    """Write what this worker's batch was: `nonfinite/step-<s>-rank-<r>.json`, one row per image."""
    counters = error.batch.counters
    rows = zip(
        [dataset.key(int(index)) for index in order.samples(counters.numpy())],
        counters.tolist(),
        objective.timesteps(counters).tolist(),
        [str(loss) for loss in error.losses.tolist()],
        strict=True,
    )
    folder = run_directory / NON_FINITE
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{error.batch.step:08d}-rank-{worker.rank}.json"
    names = ("key", "sample_counter", "t", "loss")
    write_json_atomic(path, {"error": str(error), "images": [dict(zip(names, row, strict=True)) for row in rows]})
    _log.error("%s; this worker's images are in %s", error, path)
