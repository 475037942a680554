"""Requests: evaluations somebody asked for by hand, kept as files until they are done, across restarts."""

import time
import uuid
from pathlib import Path
from typing import Any

from common.files import read_json, write_json_atomic
from eval.backlog import Job, Selection, find_runs, is_final, jobs_of_run
from eval.protocol import from_description, parse_protocol
from eval.results import DONE, read_result


def request_evaluation(storage: Path, run_name: str, protocol: str, step: int | None = None) -> dict[str, Any]:
    """Ask for a checkpoint's number (the newest checkpoint's if no step is given) at the next opportunity.

    Returns {"status": "queued" or "done", "run", "step", "protocol", "checkpoint"}; an evaluation that failed, was
    blocked or skipped is made again. Raises ValueError naming what does not exist.
    """
    runs = {run.name: run for run in find_runs(storage)}
    if run_name not in runs:
        raise ValueError(f"run {run_name!r} is not in this storage; there are: {', '.join(runs) or 'none'}")
    jobs = jobs_of_run(runs[run_name], [parse_protocol(protocol)], Selection())
    wanted = [job for job in jobs if step in (None, job.step)]
    if not wanted:
        known = ", ".join(str(job.step) for job in reversed(jobs)) or "none"
        raise ValueError(f"run {run_name!r} has no complete checkpoint at step {step}; there are: {known}")
    job = wanted[0]
    answer = {"run": run_name, "step": job.step, "protocol": job.protocol.name, "checkpoint": job.checkpoint.name}
    known_result = read_result(job.result_path)
    if known_result is not None and known_result["status"] == DONE:
        return {"status": DONE, **answer}
    # Out of the way, so that neither a retry pause nor a final failure holds the request up.
    job.result_path.unlink(missing_ok=True)
    folder = _folder(storage)
    folder.mkdir(exist_ok=True)
    # Described, not named: a name does not say every setting of a protocol.
    request = {**answer, "protocol": job.protocol.describe(), "time": time.time()}
    write_json_atomic(folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json", request)
    return {"status": "queued", **answer}


def requested_jobs(storage: Path) -> list[Job]:
    """What was asked for and is not done, oldest request first; requests that are answered or void are removed."""
    jobs = []
    for path in sorted(_folder(storage).glob("*.json")):
        job = _job(storage, path)
        result = None if job is None else read_result(job.result_path)
        if job is None or (result is not None and is_final(result)):
            path.unlink(missing_ok=True)
        else:
            jobs.append(job)
    return jobs


def _job(storage: Path, path: Path) -> Job | None:
    """None if the run or the checkpoint is gone, or the file is not a request."""
    try:
        request = read_json(path)
        protocol, run = from_description(request["protocol"]), find_runs(storage, Path(request["run"]).name)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    jobs = jobs_of_run(run[0], [protocol], Selection()) if run else []
    return next((job for job in jobs if job.checkpoint.name == request.get("checkpoint")), None)


def _folder(storage: Path) -> Path:
    return storage / "evaluation-requests"
