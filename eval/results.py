"""Results on disk: evals/<checkpoint>/<protocol digest>.json, written once, whole or not at all, and read back."""

import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.run_directory import EVALUATIONS, checkpoint_step
from common.code import installed_versions
from common.files import read_json, write_json_atomic
from eval.protocol import Protocol, from_description

DONE, BLOCKED, FAILED, SKIPPED = "done", "blocked", "failed", "skipped"
_REPORTED_PACKAGES = ("torch", "numpy", "pillow", "torchvision", "efficientnet-lite-pytorch", "rayddpm")


def evaluation_folder(run_directory: Path, checkpoint_name: str) -> Path:
    return run_directory / EVALUATIONS / checkpoint_name


def result_path(run_directory: Path, checkpoint_name: str, protocol: Protocol) -> Path:
    return evaluation_folder(run_directory, checkpoint_name) / f"{protocol.digest}.json"


def grid_path(run_directory: Path, checkpoint_name: str, protocol: Protocol) -> Path:
    return evaluation_folder(run_directory, checkpoint_name) / f"{protocol.digest}.grid.png"


def read_result(path: Path) -> dict[str, Any] | None:
    """The result, or None if there is none yet. A file that is no result counts as none: it is written again."""
    try:
        result = read_json(path)
        return result if _is_result(result, path) else None
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _is_result(result: Any, path: Path) -> bool:
    """May raise what a value of the wrong kind raises."""
    return (
        result["status"] in (DONE, BLOCKED, FAILED, SKIPPED)
        and checkpoint_step(result["checkpoint"]) == result["step"]
        and from_description(result["protocol"]).digest == path.stem
        and isinstance(result.get("attempts", 0), int)
        and (result["status"] != DONE or math.isfinite(result["value"]))
    )


def write_result(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, result)


def all_results(run_directory: Path) -> Iterator[dict[str, Any]]:
    """Every result of a run, by checkpoint (oldest first), then protocol digest."""
    for path in sorted((run_directory / EVALUATIONS).glob("*/*.json")):
        result = read_result(path)
        if result is not None:
            yield result


def library_versions() -> dict[str, str]:
    """Versions of what a number may depend on."""
    return {"python": platform.python_version(), **installed_versions(*_REPORTED_PACKAGES)}
