"""Reports: one self-contained HTML file that prints well, and the same data as JSON beside it."""

import base64
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from common.files import write_text_atomic
from eval.metrics.metric import METRICS
from eval.reports.advice import next_steps
from eval.reports.cost import format_seconds, format_worker_time
from eval.reports.curves import COLOURS, Axis, Shape, colour_of, distance_chart, format_value, loss_chart, time_axis
from eval.reports.report_data import collect, config_rows
from eval.sampling.grids import write_real_grid


def write_report(run_directories: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write `output` (HTML) and the same name with .json; returns the data. Raises ValueError for runs of one name."""
    for directory in run_directories:
        write_real_grid(directory)
    data = collect(run_directories)
    output.parent.mkdir(parents=True, exist_ok=True)
    # NaN of a diverged loss is not JSON: null is what every reader understands.
    write_text_atomic(output.with_suffix(".json"), json.dumps(_without_nan(data), indent=1, sort_keys=True))
    write_text_atomic(output, render(data))
    return data


def render(data: Mapping[str, Any]) -> str:
    """The report's HTML from `collect`'s data; sample grids are read from the paths in it."""
    runs = data["runs"]
    colours = {run["name"]: COLOURS[place % len(COLOURS)] for place, run in enumerate(runs)}
    summary = [summarise(run, data["protocols"]) for run in runs]
    charts = sorted(
        (protocol_charts(protocol, runs, colours) for protocol in data["protocols"]),
        key=lambda chart: -len(chart["rows"]),
    )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.reports", "page"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= FILTERS | {"data_uri": data_uri}
    return environment.get_template("report.html").render(
        **data,
        title=", ".join(run["name"] for run in runs),
        style=style(),
        colours=colours,
        summary=summary,
        advice=[next_steps(run, about) for run, about in zip(runs, summary, strict=True)],
        charts=charts,
        loss=_loss(runs, colours),
        settings=config_rows(runs),
    )


def style() -> str:
    """The report's style sheet, which the web page begins with too."""
    return resources.files("eval.reports").joinpath("page", "report.css").read_text(encoding="utf-8")


def protocol_charts(
    protocol: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
    shapes: Sequence[Shape] = ("wide", "narrow", "half"),
) -> dict[str, Any]:
    """One protocol's charts and its table rows. Wide and narrow ones are over steps, halves over images and time."""
    metric = METRICS[protocol["metric"]]
    rows = [
        {"run": run["name"], **result}
        for run in runs
        for result in run["evaluations"]
        if result["protocol"]["digest"] == protocol["digest"]
    ]
    times, unit_seconds = time_axis(3600 * max((row["training_hours"] or 0 for row in rows), default=0))
    axes = {
        "step": (Axis("step"), 1.0),
        "num_images_seen": (Axis("images seen"), 1.0),
        "training_hours": (times, 3600 / unit_seconds),
    }
    charts = dict.fromkeys((*axes, "narrow"), "")
    for shape in shapes:
        for key in ("num_images_seen", "training_hours") if shape == "half" else ("step",):
            axis, scale = axes[key]
            series: dict[str, list] = {}
            for row in rows:
                if row[key] is not None:
                    series.setdefault(row["run"], []).append(_point(row[key] * scale, row))
            if any(len(points) > 1 for points in series.values()):
                drawn = distance_chart(series, axis, metric.title, colours, shape, metric.lower_is_better)
                charts["narrow" if shape == "narrow" else key] = drawn
    best = min if metric.lower_is_better else max
    return {
        "protocol": protocol,
        "title": metric.title,
        "parts": metric.parts[1:],
        "charts": charts,
        "rows": rows,
        "best": best(rows, key=lambda row: row["value"]) if rows else None,
        "warnings": sorted({warning for row in rows for warning in row.get("warnings", [])}),
    }


def summarise(run: Mapping[str, Any], protocols: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A run's headline: how far it is and its first, last and best number under its most used protocol."""
    speed = [point[1] for point in run["curves"].get("train/images_per_second", [])]
    counted = {p["digest"]: sum(e["protocol"]["digest"] == p["digest"] for e in run["evaluations"]) for p in protocols}
    digest = max(counted, key=lambda key: counted[key]) if any(counted.values()) else None
    rows = [result for result in run["evaluations"] if result["protocol"]["digest"] == digest]
    best = None
    if rows:
        better = min if METRICS[rows[0]["protocol"]["metric"]].lower_is_better else max
        best = better(rows, key=lambda row: row["value"])
    return {
        "reached": run["step"],
        "images_per_second": sorted(speed)[len(speed) // 2] if speed else None,
        "first": rows[0] if rows else None,
        "last": rows[-1] if rows else None,
        "best": best,
        "rows": rows,
        "title": METRICS[rows[0]["protocol"]["metric"]].title if rows else "",
    }


def data_uri(path: str) -> str:
    """A PNG file as data: URI."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def _point(x: float, row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    interval = row.get("interval") or {}
    return (x, row["value"], interval.get("low", row["value"]), interval.get("high", row["value"]))


def _loss(runs: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> list[str]:
    """The chart, wide and narrow; none without a point."""
    series = {run["name"]: [(step, value) for step, value, _ in run["curves"].get("train/loss", [])] for run in runs}
    series = {name: points for name, points in series.items() if points}
    return [loss_chart(series, colours, "wide"), loss_chart(series, colours, "narrow")] if series else []


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _plain(value: Any) -> str:
    """A config value as a person would write it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return "none" if value is None else str(value)


FILTERS = {
    "value": format_value,
    "percent": _percent,
    "plain": _plain,
    "seconds": format_seconds,
    "worker_time": format_worker_time,
    "colour": colour_of,
}
"""How templates of the report and of the page show values."""


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
