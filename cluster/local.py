"""A Ray cluster of one machine, on loopback, with token authentication: `python -m cluster up | down | status`."""

import contextlib
import fcntl
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from common.files import read_json, write_json_atomic
from common.process import end_with_parent, process_identity
from common.progress import progress

_HOST = "127.0.0.1"
LOCAL_SETTINGS = {
    # Else Ray takes a loopback address of a head node for the machine's outer one; the setting is named after the
    # systems on which that is its default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Its workers would run at niceness 15, and training give way to everything else on the machine.
    "RAY_worker_niceness": "0",
}
_START_SECONDS, _STOP_SECONDS = 90.0, 10.0


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that `up` started: the process that holds it and where it listens."""

    pid: int
    identity: str
    """Of that process: a later one may get its pid."""
    address: str
    dashboard: str
    owner_pid: int = 0
    """The process it ends with; 0: none, it runs until `down`."""

    @property
    def is_alive(self) -> bool:
        return process_identity(self.pid) == self.identity


def up(num_cpus: int | None = None, with_this_process: bool = False) -> LocalCluster:
    """Start a cluster, or return the one that runs. num_cpus: what Ray may schedule; None: the machine's cores.

    with_this_process: it ends when this process does, however it does.
    Raises RuntimeError with the end of Ray's log if it does not answer in time.
    """
    with _lock():
        running = find()
        if running is not None and (not running.owner_pid or psutil.pid_exists(running.owner_pid)):
            return running
        if running is not None:
            _stop(running)
        with progress("starting Ray"):
            return _start(num_cpus, with_this_process)


def _start(num_cpus: int | None, with_this_process: bool) -> LocalCluster:
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
    identity = process_identity(process.pid) or ""
    owner_pid = os.getpid() if with_this_process else 0
    dashboard = f"http://{_HOST}:{dashboard_port}"
    cluster = LocalCluster(process.pid, identity, f"{_HOST}:{port}", dashboard, owner_pid)
    try:
        write_json_atomic(_state_path(), cluster.__dict__)
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(cluster):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not start; the end of {log_path}: {log_path.read_text()[-800:]}")
            time.sleep(0.2)
    except BaseException:  # Ctrl-C too: half a cluster is of no use
        _stop(cluster, patience_seconds=0)
        raise
    return cluster


def find() -> LocalCluster | None:
    """The cluster `up` started, if it is alive."""
    try:
        cluster = LocalCluster(**read_json(_state_path()))
    except FileNotFoundError:
        return None
    except TypeError:  # the fields of another version
        return None
    return cluster if cluster.is_alive else None


def down() -> bool:
    """Stop what `up` started, and nothing else. True if there was something to stop."""
    with _lock():
        cluster = find()
        if cluster is None:
            _state_path().unlink(missing_ok=True)
            return False
        _stop(cluster)
    return True


def _stop(cluster: LocalCluster, patience_seconds: float = _STOP_SECONDS) -> None:
    """End the head process and all below it, and forget the cluster once they are gone."""
    try:
        head = psutil.Process(cluster.pid)
    except psutil.NoSuchProcess:
        _state_path().unlink(missing_ok=True)
        return
    processes = [*head.children(recursive=True), head]
    # `ray start --block` ends its daemons when it is asked to end; workers of a job can keep it waiting.
    head.terminate()
    _, alive = psutil.wait_procs(processes, timeout=patience_seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_STOP_SECONDS)
    _state_path().unlink(missing_ok=True)


@contextmanager
def _lock() -> Iterator[None]:
    """One `up` or `down` at a time: the second of two `up` finds the cluster of the first."""
    with open(_state_path().with_name("cluster.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"a local Ray cluster is noted in {folder}, which cannot be made ({error.strerror}): set HOME to a folder "
            "that can be written, or train without Ray by --launcher local"
        ) from error
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
