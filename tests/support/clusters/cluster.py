"""Real Ray clusters on loopback, each with a home folder of its own: a developer's own cluster is left alone."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from common.code import ROOT
from common.files import read_json


class Cluster:
    """`python -m cluster ...` in a home folder, and jobs on the cluster that it starts.

    Jobs are submitted and stopped as users do, by `ray job ...`. Whoever waits for one asks the dashboard itself: each
    `ray job status` is a process that imports Ray for a second.
    """

    def __init__(self, home: Path):
        ours = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "RAY_AUTH_MODE": "token"}
        bin_folder = Path(sys.executable).parent
        self.environment = {**os.environ, **ours, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        self.state_path = home / "cache" / "rayddpm" / "cluster.json"
        self._token_path = home / ".ray" / "auth_token"

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cluster", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def dashboard(self) -> str:
        return read_json(self.state_path)["dashboard"]

    def processes(self) -> list[psutil.Process]:
        """The head process and all below it."""
        head = psutil.Process(read_json(self.state_path)["pid"])
        return [head, *head.children(recursive=True)]

    def submit(self, job: str, *entrypoint: str, **variables: str) -> None:
        environment = json.dumps({"env_vars": variables})
        options = ("--submission-id", job, "--no-wait", "--working-dir", ".", "--runtime-env-json", environment)
        self._ray_job("submit", *options, "--", *entrypoint)

    def stop(self, job: str) -> None:
        """SIGTERM to the job, and wait until it has ended."""
        self._ray_job("stop", job)

    def status(self, job: str) -> str:
        """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
        return self._get(f"jobs/{job}")["status"]

    def logs(self, job: str) -> str:
        return self._get(f"jobs/{job}/logs")["logs"]

    def wait_for(self, job: str, condition: Callable[[], object], seconds: float = 600.0) -> None:
        """Until the condition holds, which it never will once the job has failed."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.logs(job)[-3000:]
            assert self.status(job) != "FAILED" or condition(), self.logs(job)[-3000:]
            time.sleep(0.25)

    def _ray_job(self, verb: str, *arguments: str) -> None:
        """Tried again while a cluster that has just come up has no agent for jobs yet."""
        command = ["ray", "job", verb, "--address", self.dashboard, *arguments]
        for _ in range(30):
            ended = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
            if "No available agent" not in ended.stdout + ended.stderr:
                break
        assert ended.returncode == 0, ended.stdout + ended.stderr

    def _get(self, path: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token_path.read_text().strip()}"}
        request = urllib.request.Request(f"{self.dashboard}/api/{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def started_cluster(home: Path, num_cpus: int) -> Iterator[Cluster]:
    """Up, and down again with every process gone."""
    cluster = Cluster(home)
    started = cluster("up", "--num-cpus", str(num_cpus))
    assert started.returncode == 0, started.stderr
    try:
        yield cluster
    finally:
        processes = cluster.processes()
        stopped = cluster("down")
    assert stopped.returncode == 0, stopped.stderr
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive
    assert cluster("status").returncode == 1
