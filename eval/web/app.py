"""The service's web page and JSON, as a FastAPI application over a storage folder. It evaluates nothing by itself:
requests become files that the evaluator finds, so the page may be restarted, or run elsewhere, at any time.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel

from cluster.lease import is_held
from eval.backlog import Selection, find_runs, is_final, jobs_of_run
from eval.protocol import Protocol
from eval.reports.scheduled import report_files
from eval.results import DONE, read_result
from eval.service.heartbeat import living_evaluators
from eval.service.requests import request_evaluation, requested_jobs
from eval.web.page_data import dashboard, render_runs, render_shell

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class Order(BaseModel):
    """What "evaluate now" sends."""

    run: str
    protocol: str
    step: int | None = None


def build_app(storage: Path, protocols: Sequence[Protocol], selection: Selection) -> FastAPI:
    """The application; for loopback only: requests that name another host are refused."""
    app = FastAPI(title="RayDDPM evaluations", docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK_HOSTS))

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        return render_shell(storage.name)

    @app.get("/runs", response_class=HTMLResponse)
    def runs() -> str:
        return render_runs(dashboard(storage, protocols, selection))

    @app.get("/api/status")
    def status() -> dict[str, Any]:
        found = read_status(storage, protocols, selection)
        # Without what changes by itself: the page redraws only when there is news.
        news = {key: value for key, value in found.items() if key != "evaluators"}
        doing = [evaluator["doing"] for evaluator in found["evaluators"]]
        text = json.dumps([news, doing], sort_keys=True)
        return {**found, "version": hashlib.sha256(text.encode()).hexdigest()[:16]}

    @app.post("/api/evaluate", status_code=202)
    def evaluate(order: Order, request: Request) -> dict[str, Any]:
        # A form on another site can post text, but not this content type without being asked first.
        if "application/json" not in request.headers.get("content-type", ""):
            raise HTTPException(415, "send application/json")
        try:
            return request_evaluation(storage, order.run, order.protocol, order.step)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error

    @app.get("/healthz")
    def healthz() -> JSONResponse:
        living = living_evaluators(storage)
        answer = {"status": "ok" if living else "no evaluator is running", "evaluators": living}
        return JSONResponse(answer, status_code=200 if living else 503)

    @app.get("/files/{place:path}")
    def file(place: str) -> FileResponse:
        # Only what the page links to: no path from outside is ever joined to the folder.
        allowed = {str(path.relative_to(storage)): path for path in _linked_files(storage)}
        if place not in allowed:
            raise HTTPException(404, f"{place} is not a grid or report of this storage")
        return FileResponse(allowed[place])

    return app


def read_status(storage: Path, protocols: Sequence[Protocol], selection: Selection) -> dict[str, Any]:
    """The queue as JSON: evaluators, and for each run the state of every wanted evaluation."""
    runs = find_runs(storage)
    requested = {job.result_path for job in requested_jobs(storage)}
    return {
        "evaluators": living_evaluators(storage),
        "requested": [_state(job, True) for job in requested_jobs(storage)],
        "runs": [
            {
                "run": run.name,
                "finished": (run / "FINISHED.json").exists(),
                "queue": [_state(job, job.result_path in requested) for job in jobs_of_run(run, protocols, selection)],
                "num_results": len(list((run / "evals").glob("*/*.json"))),
            }
            for run in runs
        ],
        "reports": [str(path.relative_to(storage)) for path in report_files(storage, runs)],
    }


def _state(job: Any, requested: bool) -> dict[str, Any]:
    result = read_result(job.result_path) or {"status": "running" if is_held(job.lease_path) else "waiting"}
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


def _linked_files(storage: Path) -> list[Path]:
    runs = find_runs(storage)
    return [*report_files(storage, runs), *(path for run in runs for path in run.glob("evals/*/*.grid.png"))]
