"""The queue: complete checkpoints x protocols, less the results that are there. Nothing else is stored, so nothing
can go out of step: a restart, a second evaluator or a lost message changes nothing.
"""

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cluster.lease import is_held
from cluster.run_directory import (
    CHECKPOINTS,
    EVALUATIONS,
    FINISHED,
    LEASE,
    RUN,
    checkpoint_step,
    complete_checkpoints,
)
from common.checks import check_choice, check_whole
from eval.protocol import Protocol, from_description
from eval.results import DONE, SKIPPED, Settled, is_final, read_result, result_path
from eval.runs import read_run

_log = logging.getLogger(__name__)
Order = Literal["newest", "oldest"]


@dataclass(frozen=True)
class Job:
    """One evaluation to be made."""

    run_directory: Path
    checkpoint: Path
    step: int
    protocol: Protocol
    """Bound to the run's data set."""

    @property
    def result_path(self) -> Path:
        return result_path(self.run_directory, self.checkpoint.name, self.protocol)

    @property
    def lease_path(self) -> Path:
        return self.result_path.with_suffix(".lease")

    @property
    def work_folder(self) -> Path:
        """Finished blocks of an evaluation in progress."""
        return self.result_path.with_name(f".work-{self.protocol.digest}")


@dataclass(frozen=True)
class Selection:
    """Which checkpoints are wanted."""

    every_steps: int = 1
    """Checkpoints whose step is a multiple of this, and always the run's last."""
    retry_seconds: float = 60.0
    """A blocked or failed evaluation is tried again after this long."""
    order: Order = "newest"
    """newest first keeps up with a training that is faster than its evaluation."""

    def __post_init__(self) -> None:
        check_whole("every_steps", self.every_steps, 1)
        check_choice("order", self.order, get_args(Order))


def find_runs(storage: Path, name: str | None = None) -> list[Path]:
    """Run directories of a storage folder, by name; only the one called `name` if given. May be empty: none yet.

    One whose run.json cannot be used is left out, with one warning.
    """
    found = _folders(storage) if name is None else [storage / name]
    return sorted(run for run in found if _is_run(run))


def newest_runs(storage: Path, most: int) -> tuple[list[Path], list[Path]]:
    """The runs whose run.json is newest, newest first, at most `most` of them; and the folders behind them, which may
    be runs: of those no file is opened, so that a page costs the same however many there are."""
    ages = {run: age for run in _folders(storage) if (age := _modified_seconds(run / RUN)) is not None}
    waiting = sorted(ages, key=lambda run: (ages[run], run.name))
    newest: list[Path] = []
    while waiting and len(newest) < most:
        if _is_run(run := waiting.pop()):
            newest.append(run)
    return newest, waiting[::-1]


def _folders(storage: Path) -> list[Path]:
    return list(storage.iterdir()) if storage.is_dir() else []


def _modified_seconds(path: Path) -> float | None:
    """Unix time of a file's last change; None if it is not there. One that cannot be looked at counts as the oldest."""
    try:
        return path.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return 0.0


def _is_run(directory: Path) -> bool:
    """Whether there is a run.json that can be used; if there is one that cannot, that is said once."""
    try:
        read_run(directory)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        warn_once(f"{directory / RUN} cannot be read: {error}")
        return False
    except ValueError as error:
        warn_once(str(error))
        return False
    return True


def is_finished(run_directory: Path) -> bool:
    """False also if that cannot be seen now."""
    try:
        return (run_directory / FINISHED).exists()
    except OSError:
        return False


def checkpoints_of(run_directory: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the run's complete checkpoints, oldest first; of two attempts at one step the newer."""
    return sorted({checkpoint_step(path.name): path for path in complete_checkpoints(run_directory)}.items())


def jobs_of_run(run_directory: Path, protocols: Sequence[Protocol], selection: Selection) -> list[Job]:
    """Every wanted evaluation of a run, done or not, in the order in which they should be made."""
    run = read_run(run_directory)
    checkpoints = checkpoints_of(run_directory)
    last_steps = {run.get("num_steps")}
    if checkpoints and not is_held(run_directory / LEASE):
        last_steps.add(checkpoints[-1][0])  # nobody trains: it has ended, or was stopped early
    bound = [protocol.bind(run["manifest_digest"]) for protocol in protocols]
    jobs = [
        Job(run_directory, checkpoint, step, protocol)
        for step, checkpoint in checkpoints
        if step % selection.every_steps == 0 or step in last_steps
        for protocol in bound
    ]
    return sorted(jobs, key=lambda job: job.step, reverse=selection.order == "newest")


@functools.cache
def warn_once(text: str) -> None:
    """A polling service would repeat itself."""
    _log.warning("%s", text)


def left_behind(run_directory: Path) -> list[Job]:
    """Evaluations with a result whose evaluator was killed before it had cleared up."""
    jobs = []
    for folder in (run_directory / EVALUATIONS).glob("*/.work-*"):
        result = read_result(folder.with_name(f"{folder.name.removeprefix('.work-')}.json"))
        if result is not None and result["status"] in (DONE, SKIPPED):
            checkpoint = run_directory / CHECKPOINTS / result["checkpoint"]
            jobs.append(Job(run_directory, checkpoint, result["step"], from_description(result["protocol"])))
    return jobs


def pending_jobs(
    jobs: Iterable[Job], selection: Selection, now_seconds: float, settled: Settled | None = None
) -> list[Job]:
    """Jobs to work on now: those without a result, and blocked or failed ones whose time has come.

    settled: of whoever asks again and again.
    """
    read = read_result if settled is None else settled.read
    return [job for job in jobs if is_due(read(job.result_path), selection.retry_seconds, now_seconds)]


def is_due(result: dict[str, Any] | None, retry_seconds: float, now_seconds: float) -> bool:
    """Whether an evaluation with this result so far should be tried (again) at `now_seconds` (unix time)."""
    if result is None:
        return True
    if is_final(result):
        return False
    # A time of the future tells of another clock: waiting for it could take for ever.
    return abs(now_seconds - float(result.get("time", 0.0))) >= retry_seconds
