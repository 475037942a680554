"""The service's web page and JSON, as a FastAPI application over a storage folder. It evaluates nothing by itself:
requests become files that the evaluator finds, so the page may be restarted, or run elsewhere, at any time.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel

from cluster.lease import is_held
from cluster.run_directory import EVALUATIONS, RUN
from eval.backlog import Selection, is_finished, jobs_of_run, newest_runs, warn_once
from eval.protocol import Protocol
from eval.reports.scheduled import report_files
from eval.results import DONE, is_final, read_result
from eval.service.heartbeat import living_evaluators
from eval.service.requests import request_evaluation, requested_jobs
from eval.web.page_data import MAX_RUNS, dashboard, render_runs, render_shell

LOOPBACK_HOSTS = ("127.0.0.1", "localhost")
_LINKED = re.compile(r"(?:([^/]+)/)?(?:reports/[^/]+\.html|(?<=/)evals/(?:[^/]+/[^/]+\.grid|real)\.png)")
_UNATTENDED = {
    "status": "unattended",
    "reason": 'the evaluator looks after another run; "Evaluate now" asks for this one',
}
_FILE_HEADERS = {"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"}


class Order(BaseModel):
    """What "evaluate now" sends."""

    run: str
    protocol: str
    step: int | None = None


def build_app(storage: Path, protocols: Sequence[Protocol], selection: Selection) -> FastAPI:
    """The application; for loopback only: requests that name another host are refused."""
    app = FastAPI(title="RayDDPM evaluations", docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK_HOSTS))
    _add_pages(app, storage, protocols, selection)
    _add_api(app, storage, protocols, selection)
    return app


def _add_pages(app: FastAPI, storage: Path, protocols: Sequence[Protocol], selection: Selection) -> None:
    """The page, the part of it that is drawn anew, and the files it links to."""

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return render_shell(storage.name)

    @app.get("/runs", response_class=HTMLResponse)
    def runs() -> str:
        return render_runs(dashboard(storage, protocols, selection))

    @app.get("/files/{place:path}")
    def file(place: str) -> FileResponse:
        if (path := linked_file(storage, place)) is None:
            raise HTTPException(404, f"{place} is not a grid or report of this storage")
        # Scripts in a file, whoever put it there, do not run with the rights of this page.
        return FileResponse(path, headers=_FILE_HEADERS)


def _add_api(app: FastAPI, storage: Path, protocols: Sequence[Protocol], selection: Selection) -> None:
    """The queue as JSON, requests, and whether an evaluator is alive."""

    @app.get("/api/status")
    def status(run: str | None = None) -> dict[str, Any]:
        found = read_status(storage, protocols, selection, run)
        # Without what changes by itself: the page redraws only when there is news.
        news = {key: value for key, value in found.items() if key != "evaluators"}
        doing = [evaluator["doing"] for evaluator in found["evaluators"]]
        text = json.dumps([news, doing], sort_keys=True)
        return {**found, "version": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @app.post("/api/evaluate", status_code=202)
    def evaluate(order: Order, request: Request) -> dict[str, Any]:
        _refuse_other_sites(request)
        try:
            return request_evaluation(storage, order.run, order.protocol, order.step)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        living = living_evaluators(storage)
        answer = {"status": "ok" if living else "no evaluator is running", "evaluators": living}
        return JSONResponse(answer, status_code=200 if living else 503)


def _refuse_other_sites(request: Request) -> None:
    """Raises HTTPException for what a page of another site, or of another port, makes a browser send."""
    # A form on another site can post text, but not this content type without being asked first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send application/json")
    origin = request.headers.get("origin")
    if origin is not None and origin != f"{request.url.scheme}://{request.headers['host']}":
        raise HTTPException(403, f"{origin} may not ask for evaluations")


def read_status(
    storage: Path, protocols: Sequence[Protocol], selection: Selection, run_name: str | None = None
) -> dict[str, Any]:
    """The queue as JSON: evaluators, and the state of every wanted evaluation of the runs that the page draws.

    run_name: of this run alone, which may be an older one.
    """
    shown, older = newest_runs(storage, MAX_RUNS)
    runs = sorted(shown if run_name is None else (run for run in (*shown, *older) if run.name == run_name))
    asked_for = requested_jobs(storage)
    requested = {job.result_path for job in asked_for}
    living = living_evaluators(storage)
    return {
        "evaluators": living,
        "requested": [_state(job, True) for job in asked_for],
        "runs": [queue for run in runs if (queue := _queue(run, protocols, selection, requested, living)) is not None],
        "reports": [str(path.relative_to(storage)) for path in report_files(storage, runs)],
    }


def _queue(
    run: Path,
    protocols: Sequence[Protocol],
    selection: Selection,
    requested: set[Path],
    living: Sequence[dict[str, Any]],
) -> dict[str, Any] | None:
    """None for a run whose files cannot be read: it takes none of the others down."""
    try:
        attended = not living or any(evaluator.get("only") in (None, run.name) for evaluator in living)
        jobs = jobs_of_run(run, protocols, selection)
        queue = [_state(job, job.result_path in requested, attended) for job in jobs]
    except (OSError, ValueError, KeyError, TypeError) as error:
        warn_once(f"{run} is not shown: {type(error).__name__}: {error}")
        return None
    num_results = len(list((run / EVALUATIONS).glob("*/*.json")))
    return {"run": run.name, "finished": is_finished(run), "queue": queue, "num_results": num_results}


def _state(job: Any, requested: bool, attended: bool = True) -> dict[str, Any]:
    """attended: whether an evaluator looks after the run; any does what is requested."""
    result = read_result(job.result_path)
    if result is None:
        waiting = {"status": "waiting"} if attended or requested else _UNATTENDED
        result = {"status": "running"} if is_held(job.lease_path) else waiting
    return {
        "run": job.run_directory.name,
        "step": job.step,
        "checkpoint": job.checkpoint.name,
        "protocol": job.protocol.name,
        "status": result["status"],
        "value": result.get("value") if result["status"] == DONE else None,
        "reason": result.get("reason", ""),
        "final": is_final(result),
        "requested": requested,
    }


def linked_file(storage: Path, place: str) -> Path | None:
    """The grid or report that the page calls `place`; None for any other name, and for a link to elsewhere."""
    found = _LINKED.fullmatch(place)
    if found is None or ".." in place.split("/") or "\0" in place:
        return None
    try:
        path = (storage / place).resolve()
        is_ours = path.is_relative_to(storage.resolve()) and path.is_file()
        return path if is_ours and (found[1] is None or (storage / found[1] / RUN).is_file()) else None
    except (OSError, RuntimeError):  # cannot be read, or links in a circle
        return None
