"""Faults on purpose, for drills and tests: a run is killed, stopped, slowed or made to fail at named points.

RAYDDPM_FAULT holds faults as POINT[:step=N][:rank=N][:again]:ACTION, separated by commas (docs/OPERATIONS.md).
"""

import json
import logging
import os
import re
import signal
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.run_directory import FAULTS

VARIABLE = "RAYDDPM_FAULT"
POINTS = {
    "step.before": "a worker has a batch, its update has not begun",
    "step.loss": "the losses of an update are computed",
    "step.after": "an update is done, nothing is logged or saved yet",
    "save.capture": "a checkpoint is due, its state is not yet copied; every rank",
    "save.before_write": "rank 0 begins to write a checkpoint",
    "save.in_write": "some of its files are written",
    "save.after_write": "all of its files are written, COMPLETE.json is not",
    "save.before_rename": "COMPLETE.json is written, the folder still has its temporary name",
    "save.after_rename": "the checkpoint exists, nothing older is deleted yet",
    "fetch.before": "a worker asks for a remote file; every try counts",
    "fetch.after": "the bytes are there, not yet verified",
    "upload.before": "the launching process is about to send events to MLflow",
    "upload.after": "MLflow has them, the spool does not know yet",
}
_RANK_0_ALONE = ("save.before_write", "save.in_write", "save.after_write", "save.before_rename", "save.after_rename")
_ACTIONS = "kill (SIGKILL), stop (SIGSTOP), raise (an OSError), delay=SECONDS, or nan at step.loss"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """One fault of RAYDDPM_FAULT."""

    text: str
    """As it was written."""
    point: str
    action: str
    """kill, stop, raise, delay or nan."""
    seconds: float = 0.0
    """How long a delay takes."""
    step: int | None = None
    """Only there: the number of completed updates with this one, as in the names of checkpoints; None: at any."""
    rank: int | None = None
    """Only on that worker; None: on each that comes by."""
    again: bool = False
    """Every time; else once for a run and worker, also over restarts."""


def parse_faults(text: str) -> tuple[Fault, ...]:
    """Faults from the variable's text, none from an empty one. Raises ValueError for one that could never happen."""
    return tuple(_parse(part.strip()) for part in text.split(",") if part.strip())


def requested() -> str:
    """The value of RAYDDPM_FAULT, found to be sound; "" if it is not set. Raises ValueError."""
    text = os.environ.get(VARIABLE, "")
    parse_faults(text)
    return text


class Faults:
    """What is to happen to one process. Called at a point, it does what is due there."""

    def __init__(self, text: str = "", run_directory: Path = Path(), rank: int | None = None):
        """run_directory: where `faults/` keeps what has happened, so that a restarted run meets it once.

        rank: the worker's; None in the launching process.
        """
        self._faults = parse_faults(text)
        self._folder = run_directory / FAULTS
        self._rank = rank
        self._told: set[Fault] = set()

    def __bool__(self) -> bool:
        return bool(self._faults)

    def __call__(self, point: str, step: int | None = None) -> bool:
        """True if the losses are to become NaN. Raises OSError if that is the fault, and may not return at all."""
        poisoned = False
        for fault in self._faults:
            if self._is_due(fault, point, step):
                # One that happens again and again would fill the log.
                level = logging.DEBUG if fault in self._told else logging.WARNING
                _log.log(level, "fault on purpose, rank %s, step %s: %s", self._rank, step, fault.text)
                self._told.add(fault)
                _act(fault)
                poisoned |= fault.action == "nan"
        return poisoned

    def at(self, area: str, step: int | None = None) -> Callable[[str], None]:
        """A function to call with the second half of a point's name."""

        def reached(moment: str) -> None:
            self(f"{area}.{moment}", step)

        return reached

    def _is_due(self, fault: Fault, point: str, step: int | None) -> bool:
        here = fault.point == point and fault.step in (None, step) and fault.rank in (None, self._rank)
        return here and (fault.again or self._first_time(fault, step))

    def _first_time(self, fault: Fault, step: int | None) -> bool:
        """Whether it has not happened to this run and rank; notes that it has now."""
        self._folder.mkdir(exist_ok=True)
        name = urllib.parse.quote(fault.text, safe="=:")
        try:
            with open(self._folder / f"{name}.rank-{self._rank}.json", "x") as file:
                json.dump({"fault": fault.text, "rank": self._rank, "step": step, "unix_seconds": time.time()}, file)
        except FileExistsError:
            return False
        return True


def _act(fault: Fault) -> None:
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "raise":
        raise OSError(f"fault on purpose: {fault.text}")
    elif fault.action == "delay":
        time.sleep(fault.seconds)


def _parse(text: str) -> Fault:
    point, *parts = text.split(":")
    if point not in POINTS:
        raise ValueError(f"{VARIABLE} {text!r}: there is no point {point!r}; there are {', '.join(POINTS)}")
    conditions = {}
    for part in parts[:-1]:
        found = re.fullmatch(r"(step|rank)=(\d+)|again", part)
        if not found:
            raise ValueError(f"{VARIABLE} {text!r}: {part!r} is not understood; allowed are step=N, rank=N and again")
        conditions[found[1] or "again"] = int(found[2] or 1)
    action = re.fullmatch(r"(kill|stop|raise|nan)|delay=(\d+(?:\.\d+)?)", parts[-1] if parts else "")
    if not action or (action[1] == "nan") > (point == "step.loss"):
        raise ValueError(f"{VARIABLE} {text!r} must end with an action: {_ACTIONS}")
    fault = Fault(
        text,
        point,
        action[1] or "delay",
        float(action[2] or 0),
        conditions.get("step"),
        conditions.get("rank"),
        "again" in conditions,
    )
    _refuse_the_impossible(fault)
    return fault


def _refuse_the_impossible(fault: Fault) -> None:
    area = fault.point.partition(".")[0]
    if fault.step is not None and area in ("fetch", "upload"):
        raise ValueError(f"{VARIABLE} {fault.text!r}: {area}s belong to no step; leave step={fault.step} out")
    if fault.rank is not None and area == "upload":
        raise ValueError(f"{VARIABLE} {fault.text!r}: the launching process uploads; leave rank={fault.rank} out")
    if fault.rank and fault.point in _RANK_0_ALONE:
        raise ValueError(f"{VARIABLE} {fault.text!r}: rank 0 alone writes checkpoints; leave rank={fault.rank} out")
    if fault.step == 0:
        raise ValueError(f"{VARIABLE} {fault.text!r}: the first update is step=1")
