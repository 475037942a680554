"""A run that another process has taken over ends here."""

import time

from cluster.launch import Worker
from cluster.lease import Lease
from data_pipeline.loader import Batch
from trainer.engines.base import StepResult


class LeaseHook:
    """Ends rank 0 once another process has taken the run over, as after a machine slept: it must write no more.

    Before each commit the lease is checked again; this hook is for what is not committed, such as metrics.
    """

    def __init__(self, lease: Lease, worker: Worker, every_seconds: float = 1.0):
        self._lease, self._rank, self._every_seconds = lease, worker.rank, every_seconds
        self._checked = time.monotonic()

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        now = time.monotonic()
        if self._rank == 0 and now - self._checked > self._every_seconds:
            self._checked = now
            self._lease.check()
