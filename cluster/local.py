"""A Ray cluster of one machine, on loopback, with token authentication: `python -m cluster up | down | status`."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from common.files import read_json, write_json_atomic
from common.process import end_with_parent

_HOST = "127.0.0.1"
LOCAL_SETTINGS = {
    # Ray takes a loopback address of a head node for the machine's outer one, unless told that this is no cluster; the
    # setting is named after the systems on which that is its default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Its workers would run at niceness 15, and training give way to everything else on the machine.
    "RAY_worker_niceness": "0",
}
_START_SECONDS, _STOP_SECONDS = 90.0, 10.0


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that `up` started: the process that holds it and where it listens."""

    pid: int
    started: float
    """When that process was created: a later process may get its pid."""
    address: str
    dashboard: str
    owner_pid: int = 0
    """The process it ends with; 0: none, it runs until `down`."""


def up(num_cpus: int | None = None, with_this_process: bool = False) -> LocalCluster:
    """Start a cluster, or return the one that runs. num_cpus: what Ray may schedule; None: the machine's cores.

    with_this_process: it ends when this process does, however it does.
    Raises RuntimeError with the end of Ray's log if it does not answer in time.
    """
    running = find()
    if running is not None and (not running.owner_pid or psutil.pid_exists(running.owner_pid)):
        return running
    if running is not None:
        down()
    environment = client_environment(create_token=True) | LOCAL_SETTINGS
    port, dashboard_port, agent_port = _free_ports(3)
    log_path = _state_path().with_name("ray-head.log")
    command = [
        *(sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address", _HOST, "--port", str(port), "--include-dashboard", "true"),
        *("--dashboard-host", _HOST, "--dashboard-port", str(dashboard_port)),
        # Its default is one port of the machine: without it, a second cluster would come up and take no jobs.
        *("--dashboard-agent-listen-port", str(agent_port)),
        *(("--num-cpus", str(num_cpus)) if num_cpus else ()),
    ]
    with open(log_path, "w") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM) if with_this_process else None,
        )
    started = psutil.Process(process.pid).create_time()
    owner_pid = os.getpid() if with_this_process else 0
    dashboard = f"http://{_HOST}:{dashboard_port}"
    cluster = LocalCluster(process.pid, started, f"{_HOST}:{port}", dashboard, owner_pid)
    write_json_atomic(_state_path(), cluster.__dict__)
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(cluster):
        if process.poll() is not None or time.monotonic() > deadline:
            down()
            raise RuntimeError(f"Ray did not start; the end of {log_path}: {log_path.read_text()[-800:]}")
        time.sleep(0.2)
    return cluster


def find() -> LocalCluster | None:
    """The cluster `up` started, if it is alive."""
    if not _state_path().exists():
        return None
    cluster = LocalCluster(**read_json(_state_path()))
    try:
        same = psutil.Process(cluster.pid).create_time() == cluster.started
    except psutil.NoSuchProcess:
        return None
    return cluster if same else None


def down() -> bool:
    """Stop what `up` started, and nothing else. True if there was something to stop."""
    cluster = find()
    _state_path().unlink(missing_ok=True)
    if cluster is None:
        return False
    head = psutil.Process(cluster.pid)
    processes = [*head.children(recursive=True), head]
    # `ray start --block` ends its daemons when it is asked to end; workers of a job can keep it waiting.
    head.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_STOP_SECONDS)
    return True


def client_environment(create_token: bool = False) -> dict[str, str]:
    """This process's environment with Ray's token authentication on, as server and clients alike need it.

    create_token: make the user's token (~/.ray/auth_token, Ray's own place) if there is none.
    """
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_TRAIN_V2_ENABLED": "1"}
    # Entry points say `python`; it must be the one this code runs under.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    if create_token and "RAY_AUTH_TOKEN" not in environment and "RAY_AUTH_TOKEN_PATH" not in environment:
        path = Path.home() / ".ray" / "auth_token"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(32))
    return environment


def _state_path() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rayddpm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "cluster.json"


def _answers(cluster: LocalCluster) -> bool:
    """True once the job API takes requests."""
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return isinstance(json.load(response), list)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _token() -> str:
    if "RAY_AUTH_TOKEN" in os.environ:
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return path.read_text().strip() if path.exists() else ""


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind((_HOST, 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
