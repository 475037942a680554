"""Jobs: what `ray job submit --working-dir . -- COMMAND` does, from Python."""

import contextlib
import logging
import os

from cluster.fault import VARIABLE as FAULT_VARIABLE
from cluster.local import client_environment
from common.code import copied_packages, git_commit

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


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
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "RAYDDPM_GIT_COMMIT": git_commit(),
            FAULT_VARIABLE: os.environ.get(FAULT_VARIABLE, ""),
            **(environment or {}),
        }
        with copied_packages() as folder:
            runtime_env = {"working_dir": str(folder), "env_vars": variables}
            return self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)

    def ended(self, job_id: str) -> bool:
        return self._client.get_job_status(job_id) in _ENDED

    def succeeded(self, job_id: str) -> bool:
        return self._client.get_job_status(job_id) == "SUCCEEDED"

    def logs(self, job_id: str) -> str:
        return self._client.get_job_logs(job_id)

    def stop(self, job_id: str) -> None:
        with contextlib.suppress(RuntimeError):  # it ended by itself in the meantime
            self._client.stop_job(job_id)
