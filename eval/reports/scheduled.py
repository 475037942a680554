"""Reports at scheduled times: one for each run, sent to its MLflow run, and one that compares all runs of a storage."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.run_directory import REPORTS
from cluster.tracking.uploader import Spool
from eval.backlog import warn_once
from eval.reports.report import write_report

_TIME_FORMAT = "%Y%m%d-%H%M%S"


def write_scheduled_reports(storage: Path, runs: Sequence[Path], now_seconds: float | None = None) -> Iterator[Path]:
    """Write <run>/reports/<time>.html (and .json) for each run, and <storage>/reports/<time>.html if there are several.

    Runs' own reports are spooled as MLflow artifacts. Yields the HTML files. now_seconds: unix time; now by default.
    """
    stamp = time.strftime(_TIME_FORMAT, time.localtime(now_seconds))
    reported = []
    for run in runs:
        path = run / REPORTS / f"{stamp}.html"
        try:
            write_report([run], path)
            reported.append(run)
            spool = Spool(run, f"eval-report-{stamp}")
            spool.artifact(path, "reports")
            spool.artifact(path.with_suffix(".json"), "reports")
            spool.close()
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn_once(f"{run} gets no report: {type(error).__name__}: {error}")
            continue
        yield path
    if len(reported) > 1:
        path = storage / "reports" / f"{stamp}.html"
        write_report(reported, path)
        yield path


def report_files(storage: Path, runs: Sequence[Path]) -> list[Path]:
    """All scheduled reports, newest first."""
    folders = [storage / "reports", *(run / REPORTS for run in runs)]
    return sorted((path for folder in folders for path in folder.glob("*.html")), key=lambda p: p.name, reverse=True)
