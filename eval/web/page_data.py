"""The web page's content: the same charts and tables as a report, with the queue and what can be asked for."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from eval.backlog import Selection, checkpoints_of, newest_runs, warn_once
from eval.protocol import Protocol
from eval.reports.curves import COLOURS
from eval.reports.report import FILTERS, protocol_charts, summarise
from eval.reports.report import style as report_style
from eval.reports.report_data import collect_run, distinct_protocols
from eval.reports.scheduled import report_files

MAX_RUNS = 20
"""Runs shown with their curves, the newest: drawing them takes a tenth of a second each."""
_MAX_SETTLED = 20
"""Failures and skips shown, the newest; a report shows all."""


def dashboard(storage: Path, protocols: Sequence[Protocol], selection: Selection) -> dict[str, Any]:
    """Everything the page shows, newest run first."""
    directories, older = newest_runs(storage, MAX_RUNS)
    runs = []
    for place, directory in enumerate(directories):
        try:
            run = collect_run(directory)
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn_once(f"{directory} is not shown: {type(error).__name__}: {error}")
            continue
        colours = {run["name"]: COLOURS[place % len(COLOURS)]}
        found = distinct_protocols([run])
        offered = list(dict.fromkeys([*(p.name for p in protocols), *(p["name"] for p in found)]))
        runs.append(
            {
                **run,
                "folder": directory.name,
                "summary": summarise(run, found),
                "charts": sorted(
                    (protocol_charts(protocol, [run], colours, ("wide", "narrow")) for protocol in found),
                    key=lambda chart: -len(chart["rows"]),
                ),
                "steps": [step for step, _ in reversed(checkpoints_of(directory))],
                "offered": offered,
                # What is not final is in the queue.
                "settled": [row for row in reversed(run["not_evaluated"]) if row["final"]][:_MAX_SETTLED],
                "grids": [{**grid, "place": _place(grid["path"], storage)} for grid in run["grids"][-4:]],
                "real_place": run["real"] and _place(run["real"], storage),
            }
        )
    reports = [str(path.relative_to(storage)) for path in report_files(storage, directories)]
    return {
        "runs": runs,
        "older_runs": [directory.name for directory in older],
        "reports": reports,
        "every_steps": selection.every_steps,
    }


def _place(path: str, storage: Path) -> str:
    return str(Path(path).relative_to(storage))


def render_shell(title: str) -> str:
    """The page without its content, which its script fetches and keeps up to date."""
    return (
        _environment()
        .get_template("dashboard.html")
        .render(title=title, style=report_style() + _text("dashboard.css"), script=_text("dashboard.js"))
    )


def render_runs(data: dict[str, Any]) -> str:
    """The content as HTML."""
    return _environment().get_template("dashboard_runs.html").render(**data)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval.web", "page"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= FILTERS
    return environment


def _text(name: str) -> str:
    return resources.files("eval.web").joinpath("page", name).read_text(encoding="utf-8")
