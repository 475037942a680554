"""Requests: evaluations somebody asked for by hand, kept as files until they are done, across restarts."""

import time
import uuid
from pathlib import Path
from typing import Any

from common.files import read_json, write_json_atomic
from eval.backlog import Job, Selection, find_runs, jobs_of_run, warn_once
from eval.protocol import from_description, parse_protocol
from eval.results import DONE, is_final, read_result


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
    """What was asked for and is not done, oldest request first; requests that are answered or void are removed.

    Files that are not requests are left alone, and one that cannot be read now is looked at again the next time.
    """
    jobs = []
    for path in sorted(_folder(storage).glob("*.json")):
        try:
            job = _job(storage, path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            warn_once(f"{path} is left alone: {type(error).__name__}: {error}")
            continue
        result = None if job is None else read_result(job.result_path)
        if job is None or (result is not None and is_final(result)):
            path.unlink(missing_ok=True)
        else:
            jobs.append(job)
    return jobs


def _job(storage: Path, path: Path) -> Job | None:
    """None if the run or the checkpoint is gone. Raises OSError, ValueError, KeyError or TypeError for another file."""
    request = read_json(path)
    protocol, name, checkpoint = from_description(request["protocol"]), request["run"], request["checkpoint"]
    if name != Path(name).name or name == "..":
        raise ValueError(f"run {name!r} is not the name of a run")
    if not (storage / name).is_dir():
        return None
    jobs = jobs_of_run(storage / name, [protocol], Selection())
    return next((job for job in jobs if job.checkpoint.name == checkpoint), None)


def _folder(storage: Path) -> Path:
    return storage / "evaluation-requests"
