"""Where a comparison with training images lies, and how a report reads it (without the networks that made it)."""

import json
from pathlib import Path
from typing import Any


def neighbours_path(result_path: Path, suffix: str) -> Path:
    """neighbours/<protocol digest>.png and .json beside a result."""
    return result_path.parent / "neighbours" / f"{result_path.stem}{suffix}"


def read_neighbours(result_path: Path) -> dict[str, Any] | None:
    """What `find_neighbours` wrote for this evaluation, with the picture's path; None if it was not asked for."""
    path = neighbours_path(result_path, ".json")
    if not path.exists():
        return None
    return {**json.loads(path.read_text()), "path": str(neighbours_path(result_path, ".png"))}
