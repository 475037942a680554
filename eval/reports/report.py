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
from eval.reports.curves import COLOURS, distance_chart, format_value, loss_chart
from eval.reports.report_data import collect, config_rows


def write_report(run_directories: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write `output` (HTML) and the same name with .json; returns the data. Raises ValueError for runs of one name."""
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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.reports", "page"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"value": format_value, "data_uri": data_uri, "percent": _percent, "plain": _plain}
    return environment.get_template("report.html").render(
        **data,
        title=", ".join(run["name"] for run in runs),
        style=style(),
        colours=colours,
        summary=[summarise(run, data["protocols"]) for run in runs],
        charts=sorted(
            (protocol_charts(protocol, runs, colours) for protocol in data["protocols"]),
            key=lambda chart: -len(chart["rows"]),
        ),
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
    axes: Sequence[str] = ("step", "num_images_seen", "training_hours"),
) -> dict[str, Any]:
    """One protocol's charts, over steps, images seen and hours, and its table rows."""
    metric = METRICS[protocol["metric"]]
    title, lower = metric.title, metric.lower_is_better
    rows = [
        {"run": run["name"], **result}
        for run in runs
        for result in run["evaluations"]
        if result["protocol"]["digest"] == protocol["digest"]
    ]
    longest = max((row["training_hours"] or 0 for row in rows), default=0)
    hours, unit = (60, "minutes") if longest < 3 else (1, "hours")
    scales = {
        "step": ("step", 1),
        "num_images_seen": ("images seen", 1),
        "training_hours": (f"{unit} since the start of training", hours),
    }
    charts = {}
    for key in axes:
        label, scale = scales[key]
        series: dict[str, list] = {}
        for row in rows:
            if row[key] is not None:
                series.setdefault(row["run"], []).append(_point(row[key] * scale, row))
        drawn = any(len(points) > 1 for points in series.values())
        charts[key] = distance_chart(series, label, title, colours, key == "step", lower) if drawn else ""
    best = min if lower else max
    return {
        "protocol": protocol,
        "title": title,
        "parts": metric.parts[1:],
        "charts": charts,
        "rows": rows,
        "best": best(rows, key=lambda row: row["value"]) if rows else None,
        "warnings": sorted({warning for row in rows for warning in row.get("warnings", [])}),
    }


def summarise(run: Mapping[str, Any], protocols: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A run's headline: how far it is and its first, last and best number under its most used protocol."""
    loss = run["curves"].get("train/loss", [])
    reached = max([point[0] for point in loss] + [result["step"] for result in run["evaluations"]], default=0)
    speed = [point[1] for point in run["curves"].get("train/images_per_second", [])]
    counted = {p["digest"]: sum(e["protocol"]["digest"] == p["digest"] for e in run["evaluations"]) for p in protocols}
    digest = max(counted, key=lambda key: counted[key]) if any(counted.values()) else None
    rows = [result for result in run["evaluations"] if result["protocol"]["digest"] == digest]
    best = None
    if rows:
        better = min if METRICS[rows[0]["protocol"]["metric"]].lower_is_better else max
        best = better(rows, key=lambda row: row["value"])
    return {
        "reached": reached,
        "images_per_second": sorted(speed)[len(speed) // 2] if speed else None,
        "first": rows[0] if rows else None,
        "last": rows[-1] if rows else None,
        "best": best,
        "title": METRICS[rows[0]["protocol"]["metric"]].title if rows else "",
    }


def data_uri(path: str) -> str:
    """A PNG file as data: URI."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def _point(x: float, row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    interval = row.get("interval") or {}
    return (x, row["value"], interval.get("low", row["value"]), interval.get("high", row["value"]))


def _loss(runs: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> str:
    series = {run["name"]: [(step, value) for step, value, _ in run["curves"].get("train/loss", [])] for run in runs}
    series = {name: points for name, points in series.items() if points}
    return loss_chart(series, colours) if series else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _plain(value: Any) -> str:
    """A config value as a person would write it."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return "none" if value is None else str(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
