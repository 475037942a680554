"""How often an evaluation was tried in vain: an attempt that finished a new block is not counted against it, so an
evaluator that is killed again and again still gets to the end as long as it gets on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import read_json, write_json_atomic


def begin_attempt(work_folder: Path, known: Mapping[str, Any] | None) -> dict[str, int]:
    """Count this attempt before it can kill us: {"attempts", "num_blocks_before"}. known: the result so far."""
    previous = _read(work_folder) or known or {}
    num_blocks = len(list(work_folder.glob("blocks-of-*/block-*.npy")))
    got_on = num_blocks > previous.get("num_blocks_before", 0)
    counted = {"attempts": 1 if got_on else previous.get("attempts", 0) + 1, "num_blocks_before": num_blocks}
    work_folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(_path(work_folder), counted)
    return counted


def end_attempt(work_folder: Path) -> None:
    """The attempt has not killed us; what it came to is in the result, or it was stopped and does not count."""
    _path(work_folder).unlink(missing_ok=True)


def _path(work_folder: Path) -> Path:
    return work_folder / "attempt.json"


def _read(work_folder: Path) -> dict[str, int] | None:
    try:
        found = read_json(_path(work_folder))
        return {name: int(found[name]) for name in ("attempts", "num_blocks_before")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
