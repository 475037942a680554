"""The evaluation service: finds complete checkpoints of all runs in a storage folder and evaluates them, one by one."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cluster.tracking.view import where_to_look
from eval.backlog import (
    Job,
    Selection,
    find_runs,
    is_finished,
    jobs_of_run,
    left_behind,
    pending_jobs,
    warn_once,
)
from eval.metrics.metric import METRICS
from eval.protocol import Protocol
from eval.results import BLOCKED, DONE, FAILED, Settled, read_result
from eval.service.deleted import DeletedCheckpoints
from eval.service.heartbeat import Heartbeat
from eval.service.requests import requested_jobs
from eval.service.runner import Runner, record_skip
from eval.service.uploads import LateUploads

_NEXT_START = "tried again when the service is started again"
_WHILE_RUNNING = "tried again while this evaluator runs"
_WHILE_TRAINING = "tried again while a run trains, then when the service is started again"
_log = logging.getLogger(__name__)


@dataclass
class Service:
    """Polls a storage folder. `stop` ends it between two blocks of an evaluation; what is done is kept."""

    storage: Path
    protocols: Sequence[Protocol]
    selection: Selection
    runner: Runner
    run_name: str | None = None
    """Only this run; none: every run of the storage folder, also those that are still to come."""
    poll_seconds: float = 2.0
    stop: threading.Event = field(default_factory=threading.Event)
    scheduled: threading.Event = field(default_factory=threading.Event)
    """Set by a schedule: the newest checkpoint of every run is evaluated and reports are written."""

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat(self.storage, self.run_name)
        self.num_without_number = 0
        self.uploads = LateUploads(self.runner.upload)
        self._deleted: dict[Path, DeletedCheckpoints] = {}
        self._turns: dict[Path, int] = {}
        self._retry = _NEXT_START
        self._settled = Settled()

    def run_once(self) -> int:
        """Evaluate everything that is due now; the number of evaluations worked on."""
        num_worked = 0
        tried: set[Path] = set()
        for run in self._runs():
            with _apart(run):
                for job in left_behind(run):
                    self.runner.run(job)
        while not self.stop.is_set():
            if self.scheduled.is_set():
                self.scheduled.clear()
                self.run_schedule()
            # Asked anew after each one: a request or a newer checkpoint that came meanwhile goes first.
            due = [job for job in self.due() if job.result_path not in tried]
            if not due:
                break
            tried.add(due[0].result_path)
            num_worked += self._work_on(due[0])
        self._show(None)
        if not self.stop.is_set():
            for run in self._runs():
                with _apart(run):
                    self.uploads.send(run)
        return num_worked

    def run(self, until_finished: bool = False) -> None:
        """Poll until stopped or, with `until_finished`, until every run is finished and nothing is left to do."""
        self._retry = _WHILE_TRAINING if until_finished else _WHILE_RUNNING
        while not self.stop.is_set():
            # Asked before the look: a checkpoint written just before FINISHED.json is seen by that look.
            finished = self._all_finished()
            self.run_once()
            if until_finished and finished and not self.due():
                self._say_what_is_left()
                return
            self.stop.wait(self.poll_seconds)

    def run_schedule(self) -> None:
        """What is done at a scheduled time: a number for each run's newest checkpoint, then the reports."""
        runs = self._runs()
        for job in self._pending(runs, Selection(), newest_only=True):
            if not self.stop.is_set():
                self._work_on(job)
        self._show(None)
        if not self.stop.is_set():
            from eval.reports.scheduled import write_scheduled_reports  # matplotlib: not before it is needed

            with _apart(self.storage):
                for path in write_scheduled_reports(self.storage, runs):
                    _log.info("wrote %s", path)
            for run in runs:
                self.runner.upload(run)

    def due(self) -> list[Job]:
        """Jobs to work on now: requested ones first, then those of the run whose turn was longest ago."""
        for run in self._runs():
            with _apart(run):
                self._record_deleted(run)
        requested: list[Job] = []
        with _apart(self.storage):
            requested = pending_jobs(requested_jobs(self.storage), self.selection, time.time(), self._settled)
        waiting = self._pending(sorted(self._runs(), key=lambda run: self._turns.get(run, 0)), self.selection)
        return list({job.result_path: job for job in (*requested, *waiting)}.values())

    def jobs(self) -> list[Job]:
        """Every wanted evaluation of every run that can be read, done or not."""
        jobs: list[Job] = []
        for run in self._runs():
            with _apart(run):
                jobs += jobs_of_run(run, self.protocols, self.selection)
        return jobs

    def _pending(self, runs: Sequence[Path], wanted: Selection, newest_only: bool = False) -> list[Job]:
        """Due jobs: the first of each run, then the second of each, so that no run waits for another's backlog."""
        found = []
        for run in runs:
            with _apart(run):
                jobs = jobs_of_run(run, self.protocols, wanted)
                if newest_only:
                    jobs = [job for job in jobs if job.step == jobs[0].step]
                found.append(pending_jobs(jobs, self.selection, time.time(), self._settled))
        return [job for row in zip_longest(*found) for job in row if job is not None]

    def _runs(self) -> list[Path]:
        return find_runs(self.storage, self.run_name)

    def _work_on(self, job: Job) -> bool:
        """False if another evaluator has it, or a stop was asked for."""
        self._show(job)
        is_first_of_run = job.run_directory not in self._turns
        self._turns[job.run_directory] = max(self._turns.values(), default=0) + 1
        result = None
        with _apart(job.run_directory):
            result = self.runner.run(job)
        if result is None:
            return False
        if is_first_of_run:
            _log.info(
                "%s in MLflow: %s", job.run_directory.name, " and open ".join(where_to_look(job.run_directory)[:2])
            )
        self.num_without_number += result["status"] in (BLOCKED, FAILED)
        _log.info("%s", describe_result(job, result, self._retry))
        return True

    def _show(self, job: Job | None) -> None:
        """Say what is worked on. A full disk silences that, and ends nothing."""
        with _apart(self.storage):
            self.heartbeat.write(job)

    def _record_deleted(self, run: Path) -> None:
        deleted = self._deleted.setdefault(run, DeletedCheckpoints(run))
        for job in deleted.skipped(self.protocols, self.selection):
            record_skip(job, "the checkpoint was deleted before it was evaluated")
            _log.warning("%s step %d: skipped, the checkpoint was deleted", run.name, job.step)

    def _all_finished(self) -> bool:
        runs = self._runs()
        return bool(runs) and all(is_finished(run) for run in runs)

    def _say_what_is_left(self) -> None:
        for job in self.jobs():
            with _apart(job.run_directory):
                result = read_result(job.result_path) or {"status": "missing"}
                if result["status"] != DONE:
                    _log.warning("%s", describe_result(job, result, _NEXT_START))


@contextmanager
def _apart(run: Path) -> Iterator[None]:
    """What is wrong with one run's files is said once, and stops no other run."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        warn_once(f"{run} is left alone: {type(error).__name__}: {error}")


def describe_result(job: Job, result: dict[str, Any], retry: str = "then run the same command again") -> str:
    """One line for people: run, step, protocol, number with interval, cost; or what went wrong.

    retry: what follows a blocked evaluation, or what to do.
    """
    where = f"{job.run_directory.name} step {job.step}: {job.protocol.name}"
    if result["status"] != DONE:
        follows = f"; {retry}" if result["status"] == BLOCKED else ""
        return f"{where} {result['status']}: {result.get('reason', '')}{follows}"
    number = format_number(result)
    if "wall_seconds" not in result:
        return f"{where} = {number}"
    return f"{where} = {number} ({result['wall_seconds']:.1f} s, {result['images_per_second']:.0f} images/s)"


def format_number(result: dict[str, Any]) -> str:
    """`41.27 ± 0.80`, in digits that fit the size of the number."""
    if parts := METRICS[result["protocol"]["metric"]].parts:
        return " / ".join(f"{result['values'][part]:.3f}" for part in parts)
    digits = 2 if abs(result["value"]) >= 1 else 5
    interval = result.get("interval")
    margin = f" ± {interval['high'] - result['value']:.{digits}f}" if interval else ""
    return f"{result['value']:.{digits}f}{margin}"
