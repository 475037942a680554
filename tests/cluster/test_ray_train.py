"""A real Ray cluster on loopback: its sockets, its jobs, and training on it."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.tracking.spool import read_metrics
from common.code import ROOT
from tests.support.clusters.cluster import Cluster
from tests.support.trainer import command, losses

pytestmark = [pytest.mark.heavy, pytest.mark.ray]

TRAINING = [
    *("--preset", "demo", "--workers.num_workers", "2", "--train.global_batch_size", "12"),
    *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
    *("--train.log_every_steps", "1", "--checkpoint.every_steps", "5"),
]


def training(data: Path, storage: Path, num_steps: int) -> list[str]:
    where = ("--data.path", str(data), "--run.storage", str(storage), "--run.name", "run")
    return [*TRAINING, *where, "--train.num_steps", str(num_steps)]


def test_every_socket_listens_on_loopback(cluster: Cluster) -> None:
    listening = [
        connection.laddr.ip
        for process in cluster.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_the_job_api_wants_the_token(cluster: Cluster, tmp_path: Path) -> None:
    listing = ["ray", "job", "list", "--address", cluster.dashboard]
    allowed = subprocess.run(listing, env=cluster.environment, capture_output=True, text=True, check=False)
    assert allowed.returncode == 0, allowed.stderr
    stranger = cluster.environment | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    refused = subprocess.run(listing, env=stranger, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "Missing authentication token" in refused.stderr


def test_ray_job_submit_trains_the_run_that_plain_processes_train(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    arguments = training(data, tmp_path / "ray", 8)
    submitted = subprocess.run(
        [
            *("ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", "."),
            *("--", "python", "trainer/main.py", *arguments),
        ],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    local = command(*training(data, tmp_path / "local", 8), "--launcher", "local")
    assert local.returncode == 0, local.stderr
    assert len(losses(tmp_path / "ray" / "run")) == 8
    assert losses(tmp_path / "ray" / "run") == losses(tmp_path / "local" / "run")


def test_more_workers_than_this_machine_has_room_for_are_refused(data: Path, tmp_path: Path) -> None:
    refused = command("--workers.num_workers", "60", "--data.path", str(data), "--run.storage", str(tmp_path))
    assert refused.returncode == 2
    assert "error: 60 workers with 1 CPU each do not fit on this machine" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_user_error_in_a_job_ends_it_with_one_line(cluster: Cluster, tmp_path: Path) -> None:
    finished = cluster("submit", "--", "--preset", "demo", "--run.storage", "relative")
    assert finished.returncode == 1
    assert "error: run.storage 'relative' is relative" in finished.stdout
    assert "Traceback" not in finished.stdout


def test_ray_replaces_a_killed_worker_and_no_sample_is_lost(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    num_steps = 120
    job = subprocess.Popen(
        [
            *(sys.executable, "-m", "cluster", "submit", "--", "python", "trainer/main.py"),
            *training(data, tmp_path / "ray", num_steps),
        ],
        cwd=ROOT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run_directory = tmp_path / "ray" / "run"
    heartbeat = run_directory / "heartbeats" / "rank-1.json"
    deadline = time.monotonic() + 120
    while not (heartbeat.exists() and len(read_metrics(run_directory).get("train/loss", [])) >= 7):
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    os.kill(json.loads(heartbeat.read_text())["pid"], signal.SIGKILL)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output[-3000:]
    assert output.count("on 2 workers") == 2, shlex.quote(output[-3000:])
    local = command(*training(data, tmp_path / "local", num_steps), "--launcher", "local")
    assert local.returncode == 0, local.stderr
    assert losses(run_directory) == losses(tmp_path / "local" / "run")
