"""Jobs: what `ray job submit --working-dir . -- COMMAND` does, from Python."""

import contextlib
import logging
import os
import time
import uuid
from typing import Any

from cluster.fault import VARIABLE as FAULT_VARIABLE
from cluster.local import client_environment
from common.code import copied_packages, git_commit
from common.interrupt import Interrupted

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_START_SECONDS = 120
_STOP_SECONDS = 60
"""How long a job may take to end in good order, with a checkpoint, before it is killed."""


class Jobs:
    """Jobs on the cluster whose dashboard is at `dashboard` (http://host:port)."""

    def __init__(self, dashboard: str):
        # Ray reads the authentication mode when it is imported, so it is set first.
        os.environ.update(client_environment())
        from ray.job_submission import JobSubmissionClient

        # It tells of every .gitignore, and warns that .git and .venv stay behind, as they should.
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._client = JobSubmissionClient(dashboard)

    def submit(self, entrypoint: str, environment: dict[str, str] | None = None) -> str:
        """Send a copy of our packages (about 1 MB) and run `entrypoint` in its folder; the job's id.

        A stopped job gets SIGINT and a minute, so that it can end in good order.
        """
        variables = {
            "RAY_JOB_STOP_SIGNAL": "SIGINT",
            "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS),
            "RAYDDPM_GIT_COMMIT": git_commit(),
            FAULT_VARIABLE: os.environ.get(FAULT_VARIABLE, ""),
            **(environment or {}),
        }
        job_id = f"rayddpm-{uuid.uuid4().hex[:12]}"
        try:
            with copied_packages() as folder:
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

    def stop(self, job_id: str) -> None:
        with contextlib.suppress(RuntimeError):  # it ended by itself in the meantime
            self._client.stop_job(job_id)

    def stop_and_wait(self, *job_ids: str) -> None:
        """Ask jobs that still run to end, and wait until they have, a little longer than they are given."""
        running = [job_id for job_id in job_ids if not self.ended(job_id)]
        for job_id in running:
            self.stop(job_id)
        deadline = time.monotonic() + _STOP_SECONDS + 10
        while not all(self.ended(job_id) for job_id in running) and time.monotonic() < deadline:
            time.sleep(0.5)

    def follow(self, job_id: str) -> bool:
        """Print a job's log until it ends. True if it succeeded. Ctrl-C stops the job: raises Interrupted."""
        log = _Log(self, job_id)
        try:
            ended = False
            while not ended:
                ended = self.ended(job_id)
                log.print_new()
                time.sleep(0 if ended else 1)
        except KeyboardInterrupt:
            print(f"stopping job {job_id}; once more to leave it to itself", flush=True)
            self.stop_and_wait(job_id)
            log.print_new()
            raise Interrupted(
                f"job {job_id} is stopped; what it saved is kept, and the same command submitted again goes on from it"
            ) from None
        return self.succeeded(job_id)


class _Log:
    """What of a job's log was printed."""

    def __init__(self, jobs: Jobs, job_id: str):
        self._jobs, self._job_id, self._shown = jobs, job_id, 0

    def print_new(self) -> None:
        log = self._jobs.logs(self._job_id)
        print(log[self._shown :], end="", flush=True)
        self._shown = len(log)
