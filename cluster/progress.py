"""How far a run is: workers write it beside their metrics, and a bar needs only the run's folder to show it."""

import contextlib
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from cluster.run_directory import RUN, SPOOL, newest_step
from cluster.tracking.spool import read_events
from common.files import read_json, temporary_name
from common.progress import Progress, showing

TRAINING = "training"
"""The phase in which steps are done; before it, there is nothing that a stop could keep."""
_LOOK_SECONDS = 0.5


def progress_path(run_directory: Path) -> Path:
    """JSON: the phase a run is in, what it waits for in words, and the last step that was done."""
    return run_directory / "progress.json"


def write_progress(run_directory: Path, phase: str, step: int = 0) -> None:
    """Say where the run stands. Not synced to the disk, and left out if it cannot be written: it is for people."""
    path = progress_path(run_directory)
    temporary = temporary_name(path)
    with contextlib.suppress(OSError):
        temporary.write_text(f'{{"phase": "{phase}", "step": {step}}}\n')
        os.replace(temporary, path)


def read_progress(run_directory: Path) -> dict[str, Any]:
    """The phase and the step; empty if nothing is known."""
    try:
        found = read_json(progress_path(run_directory))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and {"phase", "step"} <= found.keys() else {}


def has_trained(run_directory: Path) -> bool:
    """Whether the workers that run now have completed a step, as far as is known."""
    return read_progress(run_directory).get("phase") == TRAINING


class ProgressBar:
    """`with ProgressBar(run_directory): ...` shows what a run waits for, then step, loss, images/s and the time left.

    What is there when it starts is of an earlier attempt, and is not shown.
    """

    def __init__(self, run_directory: Path, stream: TextIO | None = None, line_seconds: float = 10.0):
        self._directory, self._stream, self._line_seconds = run_directory, stream or sys.stdout, line_seconds
        self._path = run_directory / SPOOL / "train.jsonl"
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._old = read_progress(run_directory)
        self._progress = Progress("step", int(read_json(run_directory / RUN)["num_steps"]))
        self._progress.notes, self._progress.estimates = ("starting",), False
        self._progress.done = newest_step(run_directory)  # a resumed run goes on from there
        self._values: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress-files", daemon=True)
        self._shown = contextlib.ExitStack()

    def __enter__(self) -> "ProgressBar":
        self._thread.start()
        self._shown.enter_context(showing(self._progress, self._stream, self._line_seconds))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._shown.close()

    def _follow(self) -> None:
        over = False
        while not over:
            over = self._stop.wait(_LOOK_SECONDS)
            with contextlib.suppress(OSError, ValueError):  # storage that is away for a moment; a file being replaced
                self._look()

    def _look(self) -> None:
        self._read_values()
        found = read_progress(self._directory)
        if not found or found == self._old:
            self._old = found
            return
        self._old = {}
        step, self._progress.done = int(found["step"]), int(found["step"])
        per_step = self._values.get("train/step_seconds")
        if found["phase"] != TRAINING:
            self._progress.notes = (found["phase"],)
        elif per_step is not None:
            self._progress.seconds_left = per_step * ((self._progress.total or step) - step)
            images = self._values.get("train/images_per_second", 0.0)
            self._progress.notes = (f"loss {self._values['train/loss']:.4f}", f"{images:.0f} images/s")
        else:
            self._progress.notes = ()

    def _read_values(self) -> None:
        """The newest values written since the last look."""
        if self._path.exists():
            for event, self._offset in read_events(self._path, self._offset):  # noqa: B020 (continues where it ended)
                if event["type"] == "metrics" and "train/loss" in event["values"]:
                    self._values = event["values"]
