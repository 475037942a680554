"""The checkpoint that is meant where a run's directory is given."""

from __future__ import annotations

from pathlib import Path

from common.checkpoint_names import CHECKPOINT_NAME, CHECKPOINTS, COMPLETE


def checkpoint_of(place: Path, step: int | None = None) -> Path:
    """The newest complete checkpoint of a run's directory, or that of `step`; any other directory as it is.

    Raises FileNotFoundError, naming the steps there are, if the run has no such checkpoint; ValueError if a step is
    given for what is no run.
    """
    folder = place / CHECKPOINTS
    if not folder.is_dir():
        if step is not None:
            raise ValueError(f"step is {step}, but {place} is not a run's directory: leave it out for a snapshot")
        return place
    found = []
    for path in folder.iterdir():
        name, committed = CHECKPOINT_NAME.fullmatch(path.name), path / COMPLETE
        if name and committed.is_file():
            found.append((int(name[1]), committed.stat().st_mtime_ns, path))
    wanted = [entry for entry in found if step in (None, entry[0])]
    if not wanted:
        of_step = "" if step is None else f" of step {step}"
        steps = ", ".join(map(str, sorted({entry[0] for entry in found}))) or "none"
        raise FileNotFoundError(f"{place} has no complete checkpoint{of_step}; complete are: {steps}")
    return max(wanted)[2]
