"""Works on one job: lease it, evaluate, write the result first, then log it; whatever happens is recorded."""

import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.lease import Lease, LostLeaseError, holding
from cluster.run_directory import SPOOL
from cluster.tracking.spool import Spool, read_events
from common.files import TEMPORARY_NAMES
from common.pictures import write_png
from eval.backlog import Job
from eval.errors import BlockedError, StopRequestedError
from eval.metrics.metric import METRICS
from eval.results import (
    BLOCKED,
    DONE,
    FAILED,
    MAX_ATTEMPTS,
    SKIPPED,
    grid_path,
    is_final,
    read_result,
    write_result,
)
from eval.sampling.evaluation import RunBlocks, discard_work, evaluate, run_here
from eval.sampling.grids import sample_grid, write_real_grid
from eval.service.attempts import begin_attempt, end_attempt
from eval.service.uploads import Uploads
from eval.settings import EvaluationSettings

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runner:
    """What every job of an evaluator shares."""

    settings: EvaluationSettings
    run_blocks: RunBlocks = run_here
    clock: Callable[[], float] = time.time
    stop_requested: Callable[[], bool] = field(default=lambda: False)
    upload: Callable[[Path], None] = field(default_factory=Uploads)
    """Sends a run's spool to MLflow; what it cannot send must stay in the spool."""

    def run(self, job: Job) -> dict[str, Any] | None:
        """The job's result, or None if another evaluator has it or a stop was requested in the middle.

        Errors of one checkpoint end in its result file, not in the evaluator.
        """
        with holding(job.lease_path) as lease:
            if lease is None:
                return None
            result = read_result(job.result_path)
            if result is None or not is_final(result):
                result = self._attempt(job, lease, result)
                if result is None:
                    return None
            _finish(job, result)
        self.upload(job.run_directory)
        return result

    def _attempt(self, job: Job, lease: Lease, known: dict[str, Any] | None) -> dict[str, Any] | None:
        counted = begin_attempt(job.work_folder, known)
        try:
            result = self._evaluate(job, lease, counted)
        except StopRequestedError:
            end_attempt(job.work_folder)
            return None
        except LostLeaseError:
            return None
        try:
            write_result(job.result_path, result)
        finally:
            # Where the result cannot be written, as on a full disk, that does not count against the checkpoint.
            end_attempt(job.work_folder)
        return result

    def _evaluate(self, job: Job, lease: Lease, counted: dict[str, int]) -> dict[str, Any]:
        def report_alive() -> None:
            lease.check()
            if self.stop_requested():
                raise StopRequestedError

        def record(status: str, reason: str = "", **fields: int) -> dict[str, Any]:
            return _record(job, status, reason, self.clock(), {**counted, **fields})

        if counted["attempts"] > MAX_ATTEMPTS:
            reason = f"{MAX_ATTEMPTS} evaluators died or failed on it; delete the result file to try again"
            return record(FAILED, reason)
        try:
            result, preview = evaluate(job, self.settings, self.run_blocks, report_alive)
            lease.check()
            if preview is not None:
                grid = grid_path(job.run_directory, job.checkpoint.name, job.protocol)
                write_png(grid, sample_grid(preview), optimize=True)
                write_real_grid(job.run_directory)
        except BlockedError as error:
            return record(BLOCKED, str(error), attempts=0)
        except LostLeaseError:
            raise
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if not job.checkpoint.exists():
                return record(SKIPPED, "the checkpoint was deleted before it was evaluated")
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                return record(BLOCKED, f"disk: {error}; free some space", attempts=0)
            _log.debug("evaluation of %s failed", job.checkpoint, exc_info=True)
            # A ValueError of ours is a sentence by itself.
            return record(FAILED, str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
        return {**result, **record(DONE)}


def _record(job: Job, status: str, reason: str, time: float, counted: Mapping[str, int]) -> dict[str, Any]:
    """What every result file says, with a number or without."""
    return {
        "status": status,
        "reason": reason,
        **counted,
        "time": time,
        "evaluator": f"{socket.gethostname()}:{os.getpid()}",
        "checkpoint": job.checkpoint.name,
        "step": job.step,
        "protocol": job.protocol.describe(),
    }


def record_skip(job: Job, reason: str, clock: Callable[[], float] = time.time) -> None:
    """Write down that a job will not be done, and why."""
    write_result(job.result_path, _record(job, SKIPPED, reason, clock(), {"attempts": 0}))
    discard_work(job.work_folder)


def metric_values(result: dict[str, Any]) -> dict[str, float]:
    """MLflow metrics of a done result: eval/<protocol name>, with the parts of two-sided metrics below it."""
    name, parts = f"eval/{result['protocol']['name']}", METRICS[result["protocol"]["metric"]].parts
    if parts:
        return {f"{name}/{part}": result["values"][part] for part in parts}
    values = {name: result["value"]}
    if result.get("interval"):
        values[f"{name}/standard_error"] = result["interval"]["standard_error"]
    return values


def _finish(job: Job, result: dict[str, Any]) -> None:
    """What follows a result. A kill may come before any part of it, so it is gone through again when found undone."""
    if result["status"] == DONE:
        _spool_result(job, result)
    if result["status"] in (DONE, SKIPPED):
        # A result or grid that a killed evaluator had half written: nobody else writes them while we hold the lease.
        for suffix in ("json", "grid.png"):
            pattern = f"{TEMPORARY_NAMES.removesuffix('*')}{job.protocol.digest}.{suffix}"
            for left in job.result_path.parent.glob(pattern):
                left.unlink(missing_ok=True)
        discard_work(job.work_folder)


def _spool_result(job: Job, result: dict[str, Any]) -> None:
    # One writer per evaluation: several evaluators never share a file, and points may come in any order of steps.
    writer = f"eval-{job.checkpoint.name}-{job.protocol.digest[:12]}"
    path = job.run_directory / SPOOL / f"{writer}.jsonl"
    spooled = {event.get("path") for event, _ in read_events(path)} if path.exists() else set()
    if str(job.result_path.relative_to(job.run_directory)) in spooled:
        return  # it is written last
    spool = Spool(job.run_directory, writer)
    spool.metrics(metric_values(result), job.step)
    grid = grid_path(job.run_directory, job.checkpoint.name, job.protocol)
    if grid.exists():
        spool.artifact(grid, f"samples/{job.protocol.name}", f"step-{job.step:08d}.png")
    spool.artifact(job.result_path, f"evaluations/{job.protocol.name}", f"step-{job.step:08d}.json")
    spool.close()
