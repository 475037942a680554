"""Results on disk: evals/<checkpoint>/<protocol digest>.json, written once, whole or not at all, and read back."""

import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.run_directory import EVALUATIONS, checkpoint_step
from common.code import installed_versions
from common.files import read_json, write_json_atomic
from eval.metrics.metric import METRICS
from eval.protocol import Protocol, from_description

DONE, BLOCKED, FAILED, SKIPPED = "done", "blocked", "failed", "skipped"
MAX_ATTEMPTS = 3
"""A checkpoint that fails, or kills its evaluator, this often in a row without a new block is recorded as failed."""
_REPORTED_PACKAGES = ("torch", "numpy", "pillow", "torchvision", "efficientnet-lite-pytorch", "rayddpm")


def evaluation_folder(run_directory: Path, checkpoint_name: str) -> Path:
    return run_directory / EVALUATIONS / checkpoint_name


def result_path(run_directory: Path, checkpoint_name: str, protocol: Protocol) -> Path:
    return evaluation_folder(run_directory, checkpoint_name) / f"{protocol.digest}.json"


def grid_path(run_directory: Path, checkpoint_name: str, protocol: Protocol) -> Path:
    return evaluation_folder(run_directory, checkpoint_name) / f"{protocol.digest}.grid.png"


def real_grid_path(run_directory: Path) -> Path:
    """Images of the data set, laid out as samples are."""
    return run_directory / EVALUATIONS / "real.png"


def neighbours_path(result_path: Path, suffix: str) -> Path:
    """neighbours/<protocol digest>.png and .json beside a result: a comparison with training images."""
    return result_path.parent / "neighbours" / f"{result_path.stem}{suffix}"


def read_neighbours(result_path: Path) -> dict[str, Any] | None:
    """What `find_neighbours` wrote for this evaluation, with the picture's path; None if it was not asked for."""
    path = neighbours_path(result_path, ".json")
    if not path.exists():
        return None
    return {**read_json(path), "path": str(neighbours_path(result_path, ".png"))}


def read_result(path: Path) -> dict[str, Any] | None:
    """The result, or None if there is none yet. A file that does not hold one counts as none: it is written again."""
    try:
        result = read_json(path)
        return result if _is_result(result, path) else None
    except (FileNotFoundError, IsADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        return None
    except (OverflowError, RecursionError):  # numbers and nesting that JSON allows and we never write
        return None


def _is_result(result: Any, path: Path) -> bool:
    """May raise what a value of the wrong kind raises."""
    protocol = from_description(result["protocol"])
    return (
        result["status"] in (DONE, BLOCKED, FAILED, SKIPPED)
        and result["checkpoint"] == path.parent.name
        and checkpoint_step(result["checkpoint"]) == result["step"]
        and protocol.digest == path.stem == result["protocol"]["digest"]
        and protocol.name == result["protocol"]["name"]
        and isinstance(result.get("attempts", 0), int)
        and math.isfinite(result.get("time", 0.0))
        and isinstance(result.get("reason", ""), str)
        and (result["status"] != DONE or _is_number(result))
    )


def _is_number(result: Mapping[str, Any]) -> bool:
    """Whether what pages and reports show of a number is of the right kind, where it is there."""
    interval, warnings = result.get("interval") or {"low": 0.0, "high": 0.0}, result.get("warnings", [])
    shown = [result["value"], interval["low"], interval["high"], interval.get("standard_error", 0.0)]
    shown += [result.get(name, 0.0) for name in ("wall_seconds", "images_per_second")]
    values = result.get("values", {})
    shown += [*values.values(), *(values[part] for part in METRICS[result["protocol"]["metric"]].parts)]
    return all(math.isfinite(value) for value in shown) and all(isinstance(text, str) for text in warnings)


@dataclass
class Settled:
    """Final results are read once, and again when their file has changed: a queue of thousands is asked for often."""

    _seen: dict[Path, tuple[tuple[int, ...], dict[str, Any]]] = field(default_factory=dict)

    def read(self, path: Path) -> dict[str, Any] | None:
        """As `read_result`, but of a result that was seen to be final only its status and attempts."""
        try:
            status = path.stat()
        except FileNotFoundError:
            self._seen.pop(path, None)
            return None
        except OSError:
            return read_result(path)
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        known = self._seen.get(path)
        if known is not None and known[0] == version:
            return known[1]
        result = read_result(path)
        if result is not None and is_final(result):
            self._seen[path] = version, {"status": result["status"], "attempts": result.get("attempts", 1)}
        return result


def write_result(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, result)


def all_results(run_directory: Path) -> Iterator[dict[str, Any]]:
    """Every result of a run, by checkpoint (oldest first), then protocol digest."""
    found = (read_result(path) for path in (run_directory / EVALUATIONS).glob("*/*.json"))
    results = [result for result in found if result is not None]
    yield from sorted(results, key=lambda r: (r["step"], r["checkpoint"], r["protocol"]["digest"]))


def is_final(result: Mapping[str, Any]) -> bool:
    """Done, skipped, or failed too often."""
    status = result.get("status")
    if status == FAILED:
        return int(result.get("attempts", 1)) >= MAX_ATTEMPTS
    return status in (DONE, SKIPPED)


def library_versions() -> dict[str, str]:
    """Versions of what a number may depend on."""
    return {"python": platform.python_version(), **installed_versions(*_REPORTED_PACKAGES)}
