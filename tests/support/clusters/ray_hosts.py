"""A Ray cluster over hosts of this machine, a processor each; nothing of it listens outside of their namespaces."""

import contextlib
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.code import ROOT
from tests.support.clusters.hosts import Host, connected_hosts

_START = (sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats")


class RayHosts:
    """`hosts` with a raylet each, the first one's the head; `environment` is what a client of the cluster needs."""

    def __init__(self, hosts: list[Host], folder: Path):
        self.hosts, self.folder = hosts, folder
        head = hosts[0].address
        self.dashboard = f"http://{head}:8265"
        self.environment = {
            **{"PYTHONPATH": str(ROOT), "HOME": str(folder), "RAY_ADDRESS": f"{head}:6379", "PATH": _path()},
            **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_worker_niceness": "0"},
            **{"RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        }
        self.nodes: list[subprocess.Popen[str]] = []

    def start_node(self, number: int) -> None:
        host = self.hosts[number]
        role = ("--head", "--port", "6379", "--dashboard-host", host.address, "--temp-dir", str(self.folder))
        which = role if number == 0 else ("--address", self.environment["RAY_ADDRESS"])
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        with open(self.folder / f"node-{number}.log", "w") as log:
            command = (*_START, "--node-ip-address", host.address, "--num-cpus", "1", *which)
            self.nodes.append(host.start(*command, environment=environment, stdout=log, start_new_session=True))

    def run(self, *command: str, number: int = 0, **variables: str) -> tuple[int, str]:
        """Exit code and output of a command on one of the hosts."""
        process = self.hosts[number].start(*command, environment={**self.environment, **variables}, cwd=ROOT)
        output, _ = process.communicate()
        return process.returncode, output

    def wait_for_nodes(self, seconds: float = 120.0) -> None:
        look = "import ray; ray.init(log_to_driver=False); print('nodes', sum(n['Alive'] for n in ray.nodes()))"
        deadline = time.monotonic() + seconds
        while f"nodes {len(self.nodes)}" not in (found := self.run(sys.executable, "-c", look)[1]):
            assert time.monotonic() < deadline, found

    def stop(self) -> None:
        """`ray start --block` ends its daemons when it is asked to; what is left lives in the namespaces alone."""
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(30)
        for host in self.hosts:
            host.end_processes()


@contextmanager
def ray_hosts(count: int) -> Iterator[RayHosts]:
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))  # Ray's sockets need a short path
    try:
        with connected_hosts(count, folder) as hosts:
            cluster = RayHosts(hosts, folder)
            try:
                for number in range(count):
                    cluster.start_node(number)
                    if number == 0:
                        cluster.wait_for_nodes()
                cluster.wait_for_nodes()
                yield cluster
            finally:
                cluster.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _path() -> str:
    return f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
