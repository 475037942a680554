"""Faults of workers: killed, stopped, diverging. Each is really done to real processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cluster.launch import Worker
from cluster.run_directory import step_of
from cluster.storage import complete_directories
from cluster.tracking.spool import read_metrics
from common.code import ROOT
from tests.support.failures.faults import assert_same_run, wait_for
from tests.support.trainer import command, tiny_config
from trainer.config.plan import plan
from trainer.engines.base import NonFiniteError
from trainer.run import open_run, run_lease
from trainer.worker import train_worker

pytestmark = pytest.mark.heavy

ARGUMENTS = [
    *("--preset", "demo", "--launcher", "local", "--workers.num_workers", "2"),
    *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
    *("--train.num_steps", "40", "--train.global_batch_size", "12", "--train.log_every_steps", "1"),
    *("--checkpoint.every_steps", "5", "--workers.step_timeout_seconds", "5", "--data.ledger", "true"),
]


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("unbroken")
    finished = command(*ARGUMENTS, "--data.path", str(data), "--run.storage", str(storage), "--run.name", "run")
    assert finished.returncode == 0, finished.stderr
    return storage / "run"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_lost_worker_costs_a_restart_and_no_sample(
    number: signal.Signals, data: Path, unbroken: Path, tmp_path: Path
) -> None:
    running = subprocess.Popen(
        [
            *(sys.executable, "trainer/main.py", *ARGUMENTS),
            *("--data.path", str(data), "--run.storage", str(tmp_path), "--run.name", "run"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    heartbeat = tmp_path / "run" / "heartbeats" / "rank-1.json"
    wait_for(lambda: heartbeat.exists() and len(read_metrics(tmp_path / "run").get("train/loss", [])) >= 8)
    os.kill(json.loads(heartbeat.read_text())["pid"], number)
    _, errors = running.communicate(timeout=200)
    assert running.returncode == 0, errors
    assert "workers are started again after failure 1" in errors
    assert_same_run(tmp_path / "run", unbroken, data, 40)
    if number == signal.SIGSTOP:
        assert "is silent for" in errors
        assert "rank 1 (pid" in errors
        stacks = (tmp_path / "run" / "stacks" / "rank-0.txt").read_text()
        # It waits in the collective of a gradient, or of the metrics or the request to stop after a step.
        assert any(f'trainer/{place}.py", line' in stacks for place in ("engines/ddp", "hooks/window", "hooks/stop"))


def test_a_diverging_run_stops_before_the_update_and_says_which_images_it_saw(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rate of 1e30 makes weights so large after one update that the next gradient overflows.

    The checkpoint between is still being written by then, and becomes whole.
    """
    monkeypatch.setenv("RAYDDPM_FAULT", "save.in_write:step=1:delay=1")
    diverging = tiny_config(
        data, tmp_path, "run", optim={"learning_rate": 1e30, "warmup_steps": 0}, checkpoint={"every_steps": 1}
    )
    planned = plan(diverging, "tiny")
    with run_lease(planned.directory) as lease:
        open_run(planned, lease)
        with pytest.raises(NonFiniteError) as raised:
            train_worker(Worker(0, 1, torch.device("cpu")), str(planned.directory))
    step = raised.value.batch.step
    (path,) = (planned.directory / "nonfinite").iterdir()
    assert path.name == f"step-{step:08d}-rank-0.json"
    images = json.loads(path.read_text())["images"]
    first = step * 12
    assert sorted(image["sample_counter"] for image in images) == list(range(first, first + 12))
    assert all(0 <= image["t"] < 1000 and image["key"] for image in images)
    newest = complete_directories(planned.directory / "checkpoints")[-1]
    assert step_of(newest) == step
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())
