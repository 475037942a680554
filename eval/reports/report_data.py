"""What a report shows, collected from run directories alone: it works with MLflow down and without the data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.progress import read_progress
from cluster.run_directory import FINISHED, SPOOL
from cluster.tracking.spool import read_metrics, read_tags
from common.redaction import redacted
from eval.backlog import checkpoints_of
from eval.protocol import from_description
from eval.reports.cost import cost_of
from eval.results import DONE, all_results, grid_path, is_final, read_neighbours, real_grid_path, result_path
from eval.runs import read_run

MAX_CURVE_POINTS = 2000
MAX_GRIDS = 8


def collect(run_directories: Sequence[Path]) -> dict[str, Any]:
    """Everything a report needs as one JSON value, the pictures aside (they are named by path).

    Raises ValueError if two runs bear one name: their curves could not be told apart.
    """
    runs = [collect_run(directory) for directory in run_directories]
    names = [run["name"] for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs {', '.join(names)}: each name may occur once in a report; give each run's folder once")
    return {
        "runs": runs,
        "protocols": distinct_protocols(runs),
        "config_differences": config_differences(runs),
    }


def collect_run(directory: Path) -> dict[str, Any]:
    """One run: config, identity, training curves, evaluations by step, and what was not evaluated and why."""
    run = read_run(directory)
    metrics = read_metrics(directory) if (directory / SPOOL).is_dir() else {}
    curves = {name: thin(points) for name, points in metrics.items() if name.startswith(("train/", "system/"))}
    results = list(all_results(directory))
    done = {_key(r) for r in results if r["status"] == DONE}
    batch = flat_config(run["config"]).get("train.global_batch_size")
    started = min((point[2] for points in metrics.values() for point in points), default=None)
    evaluations = [_evaluation(r, batch, _hours(r, metrics, started)) for r in results if r["status"] == DONE]
    config, checkpoints, real = flat_config(run["config"]), checkpoints_of(directory), real_grid_path(directory)
    tags = read_tags(directory) if (directory / SPOOL).is_dir() else {}
    return {
        "name": directory.name,
        "directory": str(directory),
        "config": config,
        "step": _step(directory, metrics, results, checkpoints),
        "cost": cost_of(metrics, tags, config, evaluations),
        "real": str(real) if real.exists() else None,
        "config_digest": run.get("config_digest"),
        "manifest_digest": run["manifest_digest"],
        "git_commit": run.get("git_commit"),
        "num_parameters": run.get("num_parameters"),
        "num_steps": run.get("num_steps"),
        "finished": (directory / FINISHED).exists(),
        "versions": {**run.get("versions", {}), **(evaluations[-1].get("versions", {}) if evaluations else {})},
        "checkpoints": [path.name for _, path in checkpoints],
        "curves": curves,
        "evaluations": evaluations,
        "not_evaluated": [_problem(r) for r in results if r["status"] != DONE and _key(r) not in done],
        "grids": _grids(directory, results),
        "neighbours": _neighbours(directory, results),
    }


def _step(
    directory: Path, metrics: Mapping[str, Sequence[Any]], results: Sequence[Any], checkpoints: Sequence[Any]
) -> int:
    """How far the training is. Points come every so many steps only, and their file later than a checkpoint."""
    known = [points[-1][0] for name, points in metrics.items() if name.startswith("train/")]
    known += [result["step"] for result in results] + [step for step, _ in checkpoints]
    progress = read_progress(directory).get("step")
    return max([*known, progress if isinstance(progress, int) else 0], default=0)


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"dropout": 0.1}} -> {"model.dropout": 0.1}; a password in an address is left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flat_config(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = redacted(value) if isinstance(value, str) else value
    return flat


def config_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every setting of any run: [{"setting": name, "values": [one per run], "differs": not the same in all}]."""
    names = sorted({name for run in runs for name in run["config"]})
    rows = [{"setting": name, "values": [run["config"].get(name) for run in runs]} for name in names]
    return [{**row, "differs": any(value != row["values"][0] for value in row["values"])} for row in rows]


def config_differences(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings that are not the same in all runs: [{"setting": name, "values": [one per run]}]."""
    rows = [row for row in config_rows(runs) if row["differs"]]
    return [{"setting": row["setting"], "values": row["values"]} for row in rows]


def thin(points: Sequence[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """At most MAX_CURVE_POINTS of them, evenly chosen, the last one always among them."""
    stride = -(-len(points) // (MAX_CURVE_POINTS - 1))
    if stride <= 1:
        return list(points)
    return [*points[: len(points) - 1 : stride], points[-1]]


def initial_weight_share(result: Mapping[str, Any]) -> float | None:
    """Share of the sampled weights that is still the random initialisation; None if the checkpoint does not say."""
    ema = result.get("provenance", {}).get("ema", {})
    return ema.get("initial_weight_share") if isinstance(ema, Mapping) else None


def _key(result: Mapping[str, Any]) -> tuple[int, str]:
    """Of two attempts at one step, one may have a number that the other has not."""
    return result["step"], result["protocol"]["digest"]


def _evaluation(result: Mapping[str, Any], global_batch_size: int | None, hours: float | None) -> dict[str, Any]:
    return {
        **{"device": "", "interval": None, "images_per_second": 0.0, "wall_seconds": 0.0},
        **result,
        "initial_weight_share": initial_weight_share(result),
        "num_images_seen": result["step"] * global_batch_size if global_batch_size else None,
        "training_hours": hours,
    }


def _hours(
    result: Mapping[str, Any], metrics: Mapping[str, Sequence[tuple[int, float, float]]], started: float | None
) -> float | None:
    """Wall-clock hours from the run's first point to its first training point at or after the checkpoint's step."""
    points = metrics.get("train/loss", [])
    reached = next((seconds for step, _, seconds in points if step >= result["step"]), None)
    if reached is None and points and result["step"] > points[-1][0]:
        reached = points[-1][2]
    return None if reached is None or started is None else (reached - started) / 3600


def _problem(result: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "checkpoint": result["checkpoint"],
        "step": result["step"],
        "protocol": result["protocol"]["name"],
        "status": result["status"],
        "reason": result.get("reason", ""),
        "final": is_final(result),
    }


def distinct_protocols(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The distinct protocols of all evaluations, by digest: unlike ones never share a curve or a column."""
    found = {result["protocol"]["digest"]: result["protocol"] for run in runs for result in run["evaluations"]}
    return sorted(found.values(), key=lambda protocol: (protocol["name"], protocol["digest"]))


def _neighbours(directory: Path, results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The newest comparison with training images, if one was made."""
    found = None
    for result in results:
        path = result_path(directory, result["checkpoint"], from_description(result["protocol"]))
        found = read_neighbours(path) or found
    return found


def _grids(directory: Path, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Grids over time of the protocol with the most of them: one way of sampling, the same seeds throughout."""
    by_protocol: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if result["status"] == DONE:
            protocol = from_description(result["protocol"])
            path = grid_path(directory, result["checkpoint"], protocol)
            if path.exists():
                grid = {"step": result["step"], "path": str(path), "protocol": protocol.name}
                by_protocol.setdefault(protocol.digest, []).append(grid)
    grids = max(by_protocol.values(), key=len, default=[])
    if len(grids) <= MAX_GRIDS:
        return grids
    return [grids[round(place * (len(grids) - 1) / (MAX_GRIDS - 1))] for place in range(MAX_GRIDS)]
