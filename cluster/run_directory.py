"""What a run's directory holds, what it is called there, and how its names read: the one place that knows."""

import functools
import logging
from pathlib import Path

from cluster.lease import is_held
from common.checkpoint_names import CHECKPOINT_NAME, COMPLETE
from common.checkpoint_names import CHECKPOINTS as CHECKPOINTS

RUN = "run.json"
"""Config, digests, MLflow run, versions: what the run is."""
FINISHED = "FINISHED.json"
"""There once the run has reached its last step."""
LEASE = "lease.json"
"""Who may write."""
STOP = "STOP"
"""A file that asks the run to checkpoint and end."""
CHECKPOINT_REQUEST = "CHECKPOINT"
"""A file that asks the run to checkpoint and train on; gone once the checkpoint is committed."""
EVALUATIONS = "evals"
"""Folder of `<checkpoint>/<protocol digest>.json`, and `.lease` while an evaluation holds the checkpoint."""
REPORTS = "reports"
"""Folder of scheduled reports."""
SPOOL = "spool"
"""Folder of what the run has to say to MLflow, a file for each writer."""
HEARTBEATS = "heartbeats"
"""Folder of each worker's newest step."""
STACKS = "stacks"
"""Folder of the stacks of workers that the watchdog has ended."""
NON_FINITE = "nonfinite"
"""Folder of the images that gave a gradient that is not finite."""
LEDGER = "ledger"
"""Folder of which worker was given which sample, if that is recorded."""
FAULTS = "faults"
"""Folder of the faults on purpose that have happened."""
RAY = "ray"
"""Folder of Ray Train's own state, one for each attempt."""

_log = logging.getLogger(__name__)


def checkpoint_name(step: int, attempt: str) -> str:
    """step: completed updates. attempt: lower-case letters and digits, another one for each attempt at the run."""
    name = f"step-{step:08d}-{attempt}"
    assert CHECKPOINT_NAME.fullmatch(name), name
    return name


def checkpoint_step(name: str) -> int:
    """The step of a checkpoint by its name. Raises ValueError if the name is not one that `checkpoint_name` gives."""
    found = CHECKPOINT_NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"checkpoint {name!r} is not named step-<step, at least 8 digits>-<attempt>")
    return int(found[1])


def step_of(checkpoint: Path) -> int:
    """The number of completed updates that a checkpoint's folder is named for."""
    return checkpoint_step(checkpoint.name)


def complete_checkpoints(run_directory: Path) -> list[Path]:
    """The committed checkpoints, oldest first: by step, and of two at one step by when they were committed.

    Two are at one step where a damaged one was passed over and its steps were trained again. Folders of other names,
    such as copies that a user keeps, do not count; each is named in the log, once. One that cannot be looked at (EIO,
    ESTALE) counts as the oldest of its step: it exists, and whoever reads it finds out. Raises OSError if the folder
    of checkpoints cannot be read.
    """
    parent = run_directory / CHECKPOINTS
    if not parent.is_dir():
        return []
    ages = {}
    for path in parent.iterdir():
        if path.name.startswith(".") or (age := _committed_nanoseconds(path)) is None:
            continue
        if CHECKPOINT_NAME.fullmatch(path.name):
            ages[path] = age
        else:
            _leave_alone(path)
    return sorted(ages, key=lambda path: (step_of(path), ages[path], path.name))


def newest_step(run_directory: Path) -> int:
    """The step of the newest committed checkpoint, 0 if there is none."""
    checkpoints = complete_checkpoints(run_directory)
    return step_of(checkpoints[-1]) if checkpoints else 0


def is_being_evaluated(run_directory: Path, checkpoint_name: str) -> bool:
    """Whether an evaluation holds the checkpoint right now: retention must leave it."""
    return any(is_held(path) for path in (run_directory / EVALUATIONS / checkpoint_name).glob("*.lease"))


def _committed_nanoseconds(checkpoint: Path) -> int | None:
    """When the checkpoint was committed, in unix nanoseconds; 0 if that cannot be read, None if it is not committed."""
    try:
        return (checkpoint / COMPLETE).stat().st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return 0


@functools.cache
def _leave_alone(path: Path) -> None:
    """Said once: the folder is listed again and again."""
    _log.warning("%s is left alone: checkpoints are named step-<step, at least 8 digits>-<attempt>", path)
