"""Where training stands, once a second, for whoever watches: a bar, and the command that is asked to stop."""

import time
from pathlib import Path

from cluster.launch import Worker
from cluster.progress import TRAINING, write_progress
from data_pipeline.loader import Batch
from trainer.config.config import Config
from trainer.engines.base import StepResult


class ProgressHook:
    """Rank 0 writes the step into the run's folder: the first one at once, then one per second, and the last."""

    def __init__(self, run_directory: Path, worker: Worker, config: Config, start_step: int):
        """start_step: the number of updates that the checkpoint has."""
        self._directory, self._writes, self._written = run_directory, worker.rank == 0, float("-inf")
        self._num_steps = config.train.num_steps
        if self._writes:
            waiting_for = "compiling, first step" if config.workers.compile else "first step"
            write_progress(run_directory, waiting_for, start_step)

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        now = time.monotonic()
        if self._writes and (now - self._written >= 1.0 or step == self._num_steps):
            self._written = now
            write_progress(self._directory, TRAINING, step)
