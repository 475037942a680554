"""Which run a folder holds: the one it was made for, also after it was moved, or a copy with a name of its own."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.run_directory import RUN, SPOOL
from cluster.tracking.spool import read_events
from common.files import read_json


def own_uid(run_directory: Path, run: Mapping[str, Any]) -> str:
    """What the folder's MLflow run is found by: the uid of its run.json; if it is a copy of another, one of its own.

    run: the content of its run.json. Where the original is still in its place, this folder is the copy. Where it cannot
    be seen from here, the folder is taken for moved.
    """
    uid = str(run["uid"])
    if _is_other_folder_of_the_run(_home(run_directory, run), run_directory, uid):
        return hashlib.sha256(f"{uid} {run_directory.absolute()}".encode()).hexdigest()[:32]
    return uid


def _home(run_directory: Path, run: Mapping[str, Any]) -> str:
    """Where the run was last opened; for one of an earlier version as it told MLflow. "" if it was never said."""
    if isinstance(directory := run.get("directory"), str):
        return directory
    path = run_directory / SPOOL / "run.jsonl"
    events = [event for event, _ in read_events(path)] if path.exists() else []
    tags = [event["values"] for event in events if event["type"] == "tags"]
    return next((str(values["run_directory"]) for values in reversed(tags) if "run_directory" in values), "")


def _is_other_folder_of_the_run(home: str, run_directory: Path, uid: str) -> bool:
    path = Path(home) / RUN
    try:
        other = read_json(path)
        return isinstance(other, dict) and other.get("uid") == uid and not path.parent.samefile(run_directory)
    except (OSError, ValueError):
        return False  # nothing there, or nothing that can be read
