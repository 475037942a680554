"""Jobs: what `ray job submit --working-dir . -- COMMAND` does, from Python."""

import contextlib
import logging
import os
import time
import uuid
from typing import Any

from cluster.fault import VARIABLE as FAULT_VARIABLE
from cluster.local import client_environment, find, has_token
from common.checks import did_you_mean
from common.code import copied_packages, git_commit
from common.interrupt import Interrupted
from common.logs import VARIABLE as LOG_VARIABLE

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_START_SECONDS = 120
STOP_SECONDS = 60
"""How long a job may take to end in good order, with a checkpoint, before it is killed."""
_STOP_SIGNAL, _STOP_WAIT = "RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S"
_RAYS_OWN_STOP_SECONDS = 3


class Jobs:
    """Jobs on the cluster whose dashboard is at `dashboard` (http://host:port)."""

    def __init__(self, dashboard: str):
        # Ray reads the authentication mode when it is imported, so it is set first. A cluster of others may have none.
        variables = client_environment()
        os.environ.update(variables if has_token() else {"PATH": variables["PATH"]})
        from ray.job_submission import JobSubmissionClient

        # It tells of every .gitignore, and warns that .git and .venv stay behind, as they should.
        logging.getLogger("ray").setLevel(logging.ERROR)
        try:
            self._client = JobSubmissionClient(dashboard)
        except (ConnectionError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ConnectionError(f"no job API at {dashboard}: {reason}") from error
        self.code_bytes = 0
        """Size of the copy that `submit` sent last."""

    def all(self) -> list[tuple[str, str, str]]:
        """(id, status, command) of every job, the oldest first."""
        found = sorted(self._client.list_jobs(), key=lambda job: job.start_time or 0)
        return [(job.submission_id, str(job.status), job.entrypoint) for job in found if job.submission_id]

    def check(self, job_id: str) -> None:
        """Raises ValueError if there is no such job."""
        known = [name for name, *_ in self.all()]
        if job_id not in known:
            near = did_you_mean(job_id, known) or f"; there are {', '.join(known[-5:]) or 'none'}"
            raise ValueError(f"there is no job {job_id}{near}")

    def submit(self, entrypoint: str, stop_seconds: int = STOP_SECONDS) -> str:
        """Send a copy of our packages and run `entrypoint` in its folder; the job's id.

        A stopped job gets SIGINT and `stop_seconds`, so that it can end in good order.
        """
        variables = {
            _STOP_SIGNAL: "SIGINT",
            _STOP_WAIT: str(stop_seconds),
            "RAYDDPM_GIT_COMMIT": git_commit(),
            **{name: os.environ.get(name, "") for name in (FAULT_VARIABLE, LOG_VARIABLE)},
        }
        job_id = f"rayddpm-{uuid.uuid4().hex[:12]}"
        try:
            with copied_packages() as folder:
                self.code_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                runtime_env = {"working_dir": str(folder), "env_vars": variables}
                return self._send(entrypoint=entrypoint, runtime_env=runtime_env, submission_id=job_id)
        except KeyboardInterrupt:
            self.stop(job_id)  # it may have begun
            raise

    def _send(self, **job: Any) -> str:
        """Tried again while a cluster that has just come up has no agent for jobs yet. Raises RuntimeError."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._client.submit_job(**job)
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def ended(self, job_id: str) -> bool:
        return self._client.get_job_status(job_id) in _ENDED

    def succeeded(self, job_id: str) -> bool:
        return self._client.get_job_status(job_id) == "SUCCEEDED"

    def logs(self, job_id: str) -> str:
        return self._client.get_job_logs(job_id)

    def wait(self, *job_ids: str, seconds: float = float("inf")) -> None:
        """Until all have ended, `seconds` at most."""
        deadline = time.monotonic() + seconds
        while not all(self.ended(job_id) for job_id in job_ids) and time.monotonic() < deadline:
            time.sleep(0.5)

    def stop(self, job_id: str) -> None:
        with contextlib.suppress(RuntimeError):  # it ended by itself in the meantime
            self._client.stop_job(job_id)

    def stop_seconds(self, job_id: str) -> int:
        """How long the job may take to end."""
        variables = (self._client.get_job_info(job_id).runtime_env or {}).get("env_vars", {})
        return int(variables.get(_STOP_WAIT, _RAYS_OWN_STOP_SECONDS))

    def stop_and_wait(self, *job_ids: str) -> None:
        """Ask jobs that still run to end, and wait until they have, a little longer than they are given."""
        running = [job_id for job_id in job_ids if not self.ended(job_id)]
        for job_id in running:
            self.stop(job_id)
        self.wait(*running, seconds=max(map(self.stop_seconds, running), default=0) + 10)

    def follow(self, job_id: str, stops: bool = True) -> bool:
        """Print a job's log until it ends. True if it succeeded. Ctrl-C raises Interrupted; stops: and ends the job."""
        log = _Log(self, job_id)
        try:
            ended = False
            while not ended:
                ended = self.ended(job_id)
                log.print_new()
                time.sleep(0 if ended else 1)
        except KeyboardInterrupt:
            if not stops:
                raise Interrupted(f"job {job_id} goes on") from None
            print(f"stopping job {job_id}; once more to leave it to itself", flush=True)
            self.stop_and_wait(job_id)
            log.print_new()
            raise Interrupted(
                f"job {job_id} is stopped; what it saved is kept, and the same command submitted again goes on from it"
            ) from None
        return self.succeeded(job_id)


def dashboard_of(address: str) -> str:
    """`address`, if it is one; else RAY_API_SERVER_ADDRESS, else that of the cluster that `cluster up` started here.
    "" if there is none."""
    cluster = None if address else find()
    return address or os.environ.get("RAY_API_SERVER_ADDRESS", "") or (cluster.dashboard if cluster else "")


def connect(address: str) -> Jobs:
    """Jobs of the cluster at `dashboard_of(address)`. Raises FileNotFoundError if there is none, ConnectionError."""
    if not (dashboard := dashboard_of(address)):
        raise FileNotFoundError(
            "no cluster is running here: start one with python -m cluster up, or give the dashboard of another by "
            "--address http://HOST:8265"
        )
    return Jobs(dashboard)


class _Log:
    """What of a job's log was printed."""

    def __init__(self, jobs: Jobs, job_id: str):
        self._jobs, self._job_id, self._shown = jobs, job_id, 0

    def print_new(self) -> None:
        log = self._jobs.logs(self._job_id)
        print(log[self._shown :], end="", flush=True)
        self._shown = len(log)
