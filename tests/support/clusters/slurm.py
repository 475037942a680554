"""A real Slurm of one node, on a host of its own (tests/support/clusters/hosts.py): munge, controller, node daemon."""

import contextlib
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.code import ROOT
from tests.support.clusters.hosts import Host, connected_hosts

_CONFIG = """ClusterName=test
SlurmctldHost={name}({address})
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=60
NodeName={name} NodeAddr={address} CPUs=2 State=UNKNOWN
PartitionName=all Nodes={name} Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Commands on the host of the controller."""

    def __init__(self, host: Host, folder: Path):
        self.host, self.folder = host, folder
        (folder / "slurm.conf").write_text(_CONFIG.format(name=host.name, address=host.address, folder=folder))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # loaded, and used for nothing
        (folder / "munge.key").write_bytes(secrets.token_bytes(64))
        (folder / "munge.key").chmod(0o400)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        bin_folder = Path(sys.executable).parent
        self.environment = {
            **{"SLURM_CONF": str(folder / "slurm.conf"), "HOME": str(folder), "USER": "root"},
            **{"PATH": f"{bin_folder}:/usr/sbin:/usr/bin:/sbin:/bin", "SCRATCH_FOLDER": str(folder)},
        }
        self._daemons: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        keys = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *keys)
        self.wait_for(lambda: (self.folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D", "-N", self.host.name)
        self.wait_for(lambda: "idle" in self("sinfo", "--noheader", "--format=%T", check=False))

    def _daemon(self, *command: str) -> None:
        log = subprocess.DEVNULL
        # It sees its own processes alone: `ray symmetric-run` refuses where any Ray runs on the machine.
        alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._daemons.append(self.host.start(*alone, *command, environment=self.environment, stdout=log, stderr=log))

    def __call__(self, *command: str, check: bool = True) -> str:
        process = self.host.start(*command, environment=self.environment, cwd=self.folder)
        output, _ = process.communicate()
        assert not check or process.returncode == 0, output
        return output

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """The job's number."""
        path = ROOT / "cluster" / "deploy" / "slurm" / script
        return self("sbatch", "--parsable", *options, str(path), *arguments).strip()

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def log(self, job: str) -> str:
        path = self.folder / f"rayddpm-{job}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, condition: Callable[[], object], seconds: float = 240.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            logs = [path.read_text()[-1500:] for path in self.folder.glob("*.log")]
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(0.5)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
        self.host.end_processes()


@contextmanager
def started_slurm() -> Iterator[Slurm]:
    folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))  # Ray's sockets need a short path
    try:
        with connected_hosts(1, folder) as (host,):
            slurm = Slurm(host, folder)
            try:
                slurm.start()
                yield slurm
            finally:
                slurm.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
