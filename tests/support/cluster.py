"""Real Ray clusters on loopback, each with a home folder of its own: a developer's own cluster is left alone."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from common.code import ROOT
from common.files import read_json


class Cluster:
    """`python -m cluster ...` in a home folder."""

    def __init__(self, home: Path):
        ours = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "RAY_AUTH_MODE": "token"}
        bin_folder = Path(sys.executable).parent
        self.environment = {**os.environ, **ours, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        self.state_path = home / "cache" / "rayddpm" / "cluster.json"

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
