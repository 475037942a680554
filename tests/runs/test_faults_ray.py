"""Faults of a run on a real Ray cluster: a stopped job, a killed driver, Ray's own files damaged, a node drained."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from cluster.run_directory import step_of
from cluster.storage import complete_directories
from cluster.tracking.spool import read_metrics
from common.code import ROOT
from common.files import read_json
from tests.cluster.test_elastic import two_nodes
from tests.support.clusters.cluster import Cluster
from tests.support.failures.faults import TINY, assert_same_run, run
from tests.support.trainer import losses, signal_another_thread

pytestmark = [pytest.mark.heavy, pytest.mark.ray]

TRAINING = [*TINY, "--launcher", "ray", "--workers.num_workers", "2"]
NEVER = "1000000"
PACED = "step.after:rank=0:again:delay=0.2"


def last_step(directory: Path) -> int:
    points = read_metrics(directory).get("train/loss", [])
    return points[-1][0] if points else 0


def mlflow_status(directory: Path) -> str:
    client = MlflowClient(read_json(directory / "run.json")["tracking_uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'rayddpm'")
    (found,) = client.search_runs([experiment.experiment_id])
    return found.info.status


def kill_the_head(cluster: Cluster) -> None:
    """Every process of the only node at once, as when its machine dies; then another cluster, in its place."""
    processes = cluster.processes()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)
    started = cluster("up", "--num-cpus", "2")
    assert started.returncode == 0, started.stderr


def test_a_job_survives_ray_job_stop_the_deaths_of_its_driver_and_of_the_head_and_the_loss_of_rays_files(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "ray" / "run"
    where = ("--data.path", str(data), "--run.name", "run", "--checkpoint.every_steps", "25")
    training = ["python", "trainer/main.py", *TRAINING, *where, "--run.storage", str(directory.parent)]

    def submit(job: str, num_steps: str, fault: str = "") -> None:
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "RAYDDPM_FAULT": fault}
        cluster.submit(job, *training, "--train.num_steps", num_steps, **variables)

    submit("stopped", NEVER, PACED)
    cluster.wait_for("stopped", lambda: last_step(directory) >= 3)
    cluster.stop("stopped")
    cluster.wait_for("stopped", lambda: cluster.status("stopped") == "STOPPED")
    stopped = step_of(complete_directories(directory / "checkpoints")[-1])
    assert stopped == last_step(directory)
    assert mlflow_status(directory) == "KILLED"

    files = [path for path in (directory / "ray").rglob("*") if path.is_file()]
    assert files
    for path in files:
        os.truncate(path, path.stat().st_size // 2)
    submit("orphaned", NEVER, PACED)
    cluster.wait_for("orphaned", lambda: last_step(directory) >= stopped + 3)
    os.kill(read_json(directory / "lease.json")["pid"], signal.SIGKILL)
    cluster.wait_for("orphaned", lambda: cluster.status("orphaned") == "FAILED")
    assert f"training from step {stopped} to {NEVER} on 2 workers" in cluster.logs("orphaned")

    shutil.rmtree(directory / "ray")
    known = last_step(directory)
    submit("headless", NEVER, PACED)
    cluster.wait_for("headless", lambda: last_step(directory) >= known + 3)
    kill_the_head(cluster)
    num_steps = last_step(directory) + 2
    saved = step_of(complete_directories(directory / "checkpoints")[-1])
    submit("last", str(num_steps))
    cluster.wait_for("last", lambda: cluster.status("last") in ("SUCCEEDED", "FAILED"))
    assert cluster.status("last") == "SUCCEEDED", cluster.logs("last")[-3000:]
    assert f"training from step {saved} to {num_steps} on 2 workers" in cluster.logs("last")
    assert mlflow_status(directory) == "FINISHED"

    local = ("--launcher", "local", "--run.storage", str(tmp_path / "local"), "--train.num_steps", str(num_steps))
    ended = run(tmp_path / "logs", *TRAINING, *where, *local)
    assert ended.code == 0, ended.output
    assert_same_run(directory, tmp_path / "local" / "run", data, num_steps)


def test_the_notice_that_a_node_will_be_taken_away_leads_to_a_checkpoint(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    """There are no regular checkpoints. The run goes on after it: the node is still there.

    Another cluster on the machine is not asked about this one's run.
    """
    directory, log = tmp_path / "storage" / "run", tmp_path / "log"
    arguments = [*TRAINING, "--data.path", str(data), "--run.name", "run", "--run.storage", str(directory.parent)]
    arguments += ["--checkpoint.every_steps", NEVER, "--train.num_steps", NEVER]
    with two_nodes(tmp_path / "home") as (address, tell), log.open("w") as output:
        environment = Cluster(tmp_path / "home").environment | {"RAY_ADDRESS": address, "RAYDDPM_FAULT": PACED}
        running = subprocess.Popen(
            [sys.executable, "trainer/main.py", *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

        def wait_for(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 180
            while not condition():
                assert time.monotonic() < deadline, log.read_text()[-5000:]
                assert running.poll() is None, log.read_text()[-5000:]
                time.sleep(0.1)

        wait_for(lambda: last_step(directory) >= 3)
        known = last_step(directory)
        tell("drain")
        wait_for(lambda: len(complete_directories(directory / "checkpoints")) == 1)
        saved = step_of(complete_directories(directory / "checkpoints")[0])
        assert saved >= known
        wait_for(lambda: last_step(directory) > saved + 3)
        assert len(complete_directories(directory / "checkpoints")) == 1
        signal_another_thread(running.pid, signal.SIGINT)
        assert running.wait(timeout=120) == 130, log.read_text()[-5000:]
    assert len(losses(directory)) == last_step(directory)
    assert cluster.processes()
    assert "multiple active Ray instances" not in log.read_text()
