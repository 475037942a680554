"""The evaluation service: finds complete checkpoints of all runs in a storage folder and evaluates them, one by one."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.backlog import Job, Selection, find_runs, is_finished, jobs_of_run, pending_jobs
from eval.heartbeat import Heartbeat
from eval.protocol import Protocol
from eval.requests import requested_jobs
from eval.results import BLOCKED, DONE, read_result
from eval.runner import Runner, record_skip

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
        self._seen: dict[Path, Job] = {}
        self.heartbeat = Heartbeat(self.storage)

    def run_once(self, extra: Sequence[Job] = ()) -> int:
        """Evaluate everything that is due now; the number of evaluations worked on. extra: jobs besides the usual."""
        num_worked = 0
        tried: set[Path] = set()
        while not self.stop.is_set():
            # Asked anew after each one: a request or a newer checkpoint that came meanwhile goes first.
            due = [job for job in self.due(extra) if job.result_path not in tried]
            if not due:
                break
            tried.add(due[0].result_path)
            self.heartbeat.write(due[0])
            result = self.runner.run(due[0])
            if result is not None:
                num_worked += 1
                _log.info("%s", describe_result(due[0], result))
        self.heartbeat.write(None)
        return num_worked

    def run(self, until_finished: bool = False) -> None:
        """Poll until stopped or, with `until_finished`, until every run is finished and nothing is left to do."""
        while not self.stop.is_set():
            finished = self._all_finished()
            if self.scheduled.is_set():
                self.scheduled.clear()
                self.run_schedule()
            self.run_once()
            # Asked before the pass: a checkpoint written just before FINISHED.json is in that pass.
            if until_finished and finished and not self.due():
                self._say_what_is_left()
                return
            self.stop.wait(self.poll_seconds)

    def run_schedule(self) -> None:
        """What is done at a scheduled time: a number for each run's newest checkpoint, then the reports."""
        runs = find_runs(self.storage, self.run_name)
        newest: list[Job] = []
        for run in runs:
            jobs = jobs_of_run(run, self.protocols, Selection())
            newest += [job for job in jobs if job.checkpoint == jobs[0].checkpoint]
        self.run_once(newest)
        if not self.stop.is_set():
            from eval.scheduled_reports import write_scheduled_reports  # matplotlib: not before it is needed

            for path in write_scheduled_reports(self.storage, runs):
                _log.info("wrote %s", path)
            for run in runs:
                self.runner.upload(run)

    def due(self, extra: Sequence[Job] = ()) -> list[Job]:
        """Jobs to work on now, over all runs: requested ones first."""
        jobs = self.jobs()
        for job in jobs:
            self._seen[job.result_path] = job
        self._record_deleted()
        wanted = {job.result_path: job for job in (*requested_jobs(self.storage), *extra, *jobs)}
        return pending_jobs(wanted.values(), self.selection, time.time())

    def jobs(self) -> list[Job]:
        """Every wanted evaluation of every run, done or not."""
        runs = find_runs(self.storage, self.run_name)
        return [job for run in runs for job in jobs_of_run(run, self.protocols, self.selection)]

    def _record_deleted(self) -> None:
        for path, job in list(self._seen.items()):
            if not job.checkpoint.exists():
                if read_result(path) is None and job.run_directory.exists():
                    record_skip(job, "the checkpoint was deleted before it was evaluated")
                    _log.warning("%s step %d: skipped, the checkpoint was deleted", job.run_directory.name, job.step)
                del self._seen[path]

    def _all_finished(self) -> bool:
        runs = find_runs(self.storage, self.run_name)
        return bool(runs) and all(is_finished(run) for run in runs)

    def _say_what_is_left(self) -> None:
        for job in self.jobs():
            result = read_result(job.result_path) or {"status": "missing"}
            if result["status"] != DONE:
                _log.warning("%s", describe_result(job, result))


def describe_result(job: Job, result: dict[str, Any]) -> str:
    """One line for people: run, step, protocol, number with interval, cost; or what went wrong."""
    where = f"{job.run_directory.name} step {job.step}: {job.protocol.name}"
    if result["status"] != DONE:
        retry = "; tried again later" if result["status"] == BLOCKED else ""
        return f"{where} {result['status']}: {result.get('reason', '')}{retry}"
    number = format_number(result)
    return f"{where} = {number} ({result['wall_seconds']:.1f} s, {result['images_per_second']:.0f} images/s)"


def format_number(result: dict[str, Any]) -> str:
    """`41.27 ± 0.80`, in digits that fit the size of the number."""
    if result["protocol"]["metric"] == "precision_recall":
        return f"{result['values']['precision']:.3f} / {result['values']['recall']:.3f}"
    digits = 2 if abs(result["value"]) >= 1 else 5
    interval = result.get("interval")
    margin = f" ± {interval['high'] - result['value']:.{digits}f}" if interval else ""
    return f"{result['value']:.{digits}f}{margin}"
