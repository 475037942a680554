"""The spool: what a run has to say to MLflow, as append-only JSON lines on the run's own storage.

Writers (training rank 0, the evaluator) append and never wait for a server; `cluster.tracking.uploader` sends what they
append. Nothing is deleted after it was sent: reports read a run's history here, with MLflow up or down.
"""

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.run_directory import SPOOL

Point = tuple[int, float, float]
"""(step, value, unix seconds)"""

UNREADABLE = "unreadable"
"""Type of the event that stands for an unreadable line"""
_FIELDS: dict[str, dict[str, type]] = {
    "metrics": {"step": int, "values": dict},
    "params": {"values": dict},
    "tags": {"values": dict},
    "dataset": {"values": dict},
    "artifact": {"path": str, "folder": str},
    "status": {"status": str},
    "checkpoint": {"step": int, "name": str},
    "start": {"step": int, "trained": str},
}
_DATASET_FIELDS = {"name", "digest", "source"}
_STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED")
_END_OF_TIME_SECONDS = 1e11
_log = logging.getLogger(__name__)


class Spool:
    """One writer's file `<run>/spool/<writer>.jsonl`. A writer's name has one living process at a time."""

    def __init__(self, run_directory: Path, writer: str):
        """writer: a plain name such as "train" or "eval". A torn last line, left by a crash, is cut off."""
        path = run_directory / SPOOL / f"{writer}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._run_directory = run_directory
        self._last_steps: dict[str, int] = {}
        self._trained: str | None = None
        end = 0
        if path.exists():
            for event, end in read_events(path):  # noqa: B007 (the last `end` is where whole lines end)
                if event["type"] == "start":
                    self._void_beyond(event["step"], event["trained"])
                for name in event["values"] if event["type"] == "metrics" else ():
                    self._last_steps[name] = max(event["step"], self._last_steps.get(name, -1))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (held open for the writer's life)
        if self._file.tell() != end:
            self._file.truncate(end)

    def start(self, step: int, trained: str, known: bool = False) -> None:
        """Training begins, or goes on, after `step`. Points beyond it stay if they will come again, else they are void.

        trained: names all that decides the values of points; another name means other values. known: whether a spool
        that does not say what its points are of, written by an older version, is of the same.
        """
        if self._trained is None and known:
            return
        if self._trained != trained:
            self._void_beyond(step, trained)
            self._append({"type": "start", "step": step, "trained": trained})

    def _void_beyond(self, step: int, trained: str) -> None:
        self._trained = trained
        self._last_steps = {name: min(last, step) for name, last in self._last_steps.items()}

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Points at `step` (optimiser updates). A point of a step this writer has already written, as after a resume,
        is dropped: the run is a function of its config, so it is the same point, or see `start`."""
        fresh = {name: float(v) for name, v in values.items() if step > self._last_steps.get(name, -1)}
        if fresh:
            self._last_steps.update(dict.fromkeys(fresh, step))
            self._append({"type": "metrics", "step": step, "values": fresh})

    def params(self, values: dict[str, Any]) -> None:
        self._append({"type": "params", "values": {name: str(v) for name, v in values.items()}})

    def tags(self, values: dict[str, Any]) -> None:
        self._append({"type": "tags", "values": {name: str(v) for name, v in values.items()}})

    def dataset(self, name: str, digest: str, source: str, **facts: Any) -> None:
        """The data set that is trained on. source: where it lies; facts: whatever else there is to say of it."""
        values = {"name": name, "digest": digest, "source": source, **facts}
        self._append({"type": "dataset", "values": {key: str(value) for key, value in values.items()}})

    def artifact(self, path: Path, folder: str = "", name: str | None = None) -> None:
        """A file inside the run directory, for `folder` of the MLflow run's artifacts. name: there; its own if none."""
        named = {} if name is None else {"name": name}
        place = str(path.relative_to(self._run_directory))
        self._append({"type": "artifact", "path": place, "folder": folder, **named})

    def status(self, status: str) -> None:
        """status: RUNNING, FINISHED, FAILED or KILLED, as in MLflow."""
        self._append({"type": "status", "status": status})

    def checkpoint(self, step: int, name: str) -> None:
        """A checkpoint was committed: `name` is its folder's. For evaluators; it is not sent to MLflow."""
        self._append({"type": "checkpoint", "step": step, "name": name})

    def close(self) -> None:
        self._file.close()

    def _append(self, event: dict[str, Any]) -> None:
        # NaN is written as such: Python's JSON reads it back, and a diverged loss must be visible.
        self._file.write(json.dumps({**event, "time": time.time()}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """(event, byte offset after it) for each whole line from `offset` on.

    A line that a damaged disk made unreadable stays in the file, is named in the log, and comes as an event of type
    UNREADABLE: whoever counts bytes goes on behind it.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = _parsed(line)
            except ValueError as error:
                _log.error("%s: the line that ends at byte %d is unreadable and left out: %s", path, offset, error)
                event = {"type": UNREADABLE}
            yield event, offset


def _parsed(line: bytes) -> dict[str, Any]:
    """The event of a line. Raises ValueError if it is not one that `Spool` writes: MLflow would refuse it for ever."""
    try:
        event = json.loads(line)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deep") from error
    fields = _FIELDS.get(str(event.get("type"))) if isinstance(event, dict) else None
    if fields is None or not all(type(event.get(name)) is kind for name, kind in fields.items()):
        raise ValueError("it is not an event of a run")
    if type(event.get("time")) not in (int, float) or not 0 <= event["time"] < _END_OF_TIME_SECONDS:
        raise ValueError("it has no time")
    values = event.get("values", {})
    if event["type"] == "metrics" and not (abs(event["step"]) < 2**63 and all(map(_is_number, values.values()))):
        raise ValueError("its values are not all numbers")
    if event["type"] in ("params", "tags", "dataset") and not all(isinstance(value, str) for value in values.values()):
        raise ValueError("its values are not all text")
    if event["type"] == "dataset" and not values.keys() >= _DATASET_FIELDS:
        raise ValueError("it does not say which data set it is")
    if event["type"] == "artifact" and not _is_plain(event):
        raise ValueError("its file is not in the run directory")
    if event["type"] == "status" and event["status"] not in _STATUSES:
        raise ValueError("it has no status that MLflow knows")
    return event


def _is_plain(artifact: dict[str, Any]) -> bool:
    """Whether it is a file of the run directory, under a name without a folder."""
    name = artifact.get("name", "its own")
    inside = not artifact["path"].startswith("/") and ".." not in artifact["path"].split("/")
    return inside and isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def _is_number(value: object) -> bool:
    """NaN is one here; a whole number beyond float64 is not."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1023)


def read_metrics(run_directory: Path) -> dict[str, list[Point]]:
    """Every metric of a run, merged over writers: name -> points by step, the first written for each step.

    Points that a later `start` of the same writer has made void are left out.
    """
    merged: dict[str, dict[int, Point]] = defaultdict(dict)
    for path in sorted((run_directory / SPOOL).glob("*.jsonl")):
        written: dict[str, dict[int, Point]] = defaultdict(dict)
        for event, _ in read_events(path):
            if event["type"] == "metrics":
                for name, value in event["values"].items():
                    written[name].setdefault(event["step"], (event["step"], value, event["time"]))
            elif event["type"] == "start":
                for name, points in written.items():
                    written[name] = {step: point for step, point in points.items() if step <= event["step"]}
        for name, points in written.items():
            merged[name] = points | merged[name]
    return {name: [points[step] for step in sorted(points)] for name, points in merged.items() if points}


def read_tags(run_directory: Path) -> dict[str, str]:
    """Every tag of a run; of two of one name the one given last."""
    given: dict[str, tuple[float, str]] = {}
    for path in sorted((run_directory / SPOOL).glob("*.jsonl")):
        for event, _ in read_events(path):
            if event["type"] == "tags":
                for name, value in event["values"].items():
                    given[name] = max(given.get(name, (0.0, "")), (event["time"], value))
    return {name: value for name, (_, value) in given.items()}
