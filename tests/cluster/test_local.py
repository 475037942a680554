"""The local cluster's state: found again when the clock was set, and one `up` at a time."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster import local
from common.process import process_identity
from tests.support.clusters.cluster import Cluster


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that the state names as the head of a cluster."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process = subprocess.Popen(["sleep", "1000"])
    state = {"pid": process.pid, "identity": process_identity(process.pid), "address": "a", "dashboard": "d"}
    (tmp_path / "rayddpm").mkdir()
    (tmp_path / "rayddpm" / "cluster.json").write_text(json.dumps(state))
    yield process
    process.kill()
    process.wait()


def test_a_cluster_is_found_after_the_clock_was_set(
    stand_in: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's boot time moves with the clock, and with it what is known of when a process was created."""
    before = psutil.Process(stand_in.pid).create_time()
    boot_time = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time + 1.0)
    monkeypatch.setattr(psutil._pslinux, "BOOT_TIME", boot_time + 1.0, raising=False)
    assert psutil.Process(stand_in.pid).create_time() > before + 0.5
    found = local.find()
    assert found is not None
    assert found.pid == stand_in.pid
    assert local.down()
    assert not psutil.pid_exists(stand_in.pid)
    assert local.find() is None


def test_another_process_with_the_same_pid_is_not_the_cluster(stand_in: "subprocess.Popen[bytes]") -> None:
    path = local._state_path()
    path.write_text(path.read_text().replace(f'"pid": {stand_in.pid}', f'"pid": {os.getpid()}'))
    assert local.find() is None
    assert not local.down()
    assert stand_in.poll() is None


def test_up_waits_while_another_process_starts_or_ends_a_cluster(
    stand_in: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    program = "from cluster import local\nwith local._lock():\n    print('held', flush=True)\n    input()\n"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    found: list[local.LocalCluster] = []
    thread = threading.Thread(target=lambda: found.append(local.up()))
    thread.start()
    thread.join(0.5)
    assert not found
    holder.communicate("\n")
    thread.join()
    assert found[0].pid == stand_in.pid


@pytest.mark.heavy
@pytest.mark.ray
def test_two_ups_at_once_start_one_cluster(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    command = [sys.executable, "-m", "cluster", "up", "--num-cpus", "1"]
    both = [subprocess.Popen(command, env=cluster.environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        first, second = (process.communicate()[0] for process in both)
        assert first == second
        assert "Ray at 127.0.0.1" in first
    finally:
        processes = cluster.processes()
        assert cluster("down").returncode == 0
    assert not psutil.wait_procs(processes, timeout=20)[1]
