"""Faults of single workers of two, and of the whole chain of the hardware a run has seen."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from cluster.run_directory import step_of
from cluster.storage import complete_directories
from cluster.tracking.spool import read_metrics
from common.code import ROOT
from common.files import read_json, write_json_atomic
from tests.support.failures.faults import (
    TINY,
    Ended,
    Running,
    assert_same_run,
    audited,
    checkpoint_names,
    run,
    wait_for,
)
from tests.support.trainer import NO_GRADIENT, final_weights, losses

pytestmark = pytest.mark.heavy

STEPS = 8


@pytest.fixture(scope="module")
def unbroken(data: Path, storage: Path) -> Path:
    ended = train(data, storage, "unbroken")
    assert ended.code == 0, ended.output
    return storage / "unbroken"


def arguments_for(data: Path, storage: Path, name: str) -> list[str]:
    where = ("--data.path", str(data), "--run.storage", str(storage), "--run.name", name)
    return [*TINY, *where, "--workers.num_workers", "2"]


def train(data: Path, storage: Path, name: str, *arguments: str, **environment: str) -> Ended:
    return run(storage / "logs", *arguments_for(data, storage, name), *arguments, **environment)


def workers_of(directory: Path) -> list[psutil.Process]:
    beats = sorted((directory / "heartbeats").glob("rank-*.json"))
    return [psutil.Process(json.loads(path.read_text())["pid"]) for path in beats]


def test_nan_on_one_of_two_workers_stops_both_before_the_update(data: Path, storage: Path, unbroken: Path) -> None:
    fault = {"RAYDDPM_FAULT": "step.loss:step=6:rank=1:nan"}
    stopped = train(data, storage, "nan", "--workers.max_failures", "0", **fault)
    assert stopped.code == 1
    assert re.search(
        r"^error: the workers failed: worker [01] failed with NonFiniteError: the gradient of step 5 is not",
        stopped.output,
        re.MULTILINE,
    )
    directory = storage / "nan"
    rows = [
        json.loads((directory / "nonfinite" / f"step-00000005-rank-{r}.json").read_text())["images"] for r in (0, 1)
    ]
    assert all(math.isfinite(float(row["loss"])) for row in rows[0])
    assert all(math.isnan(float(row["loss"])) for row in rows[1])
    assert sorted(row["sample_counter"] for row in rows[0] + rows[1]) == list(range(60, 72))
    assert all(row["key"] and 0 <= row["t"] < 1000 for row in rows[0] + rows[1])
    assert [step for step, _, _ in read_metrics(directory)["train/loss"]] == [1, 2, 3, 4, 5]
    assert checkpoint_names(directory) == ["step-00000002", "step-00000004"]
    for file in ("ema.safetensors", "model.safetensors", "optimizer.safetensors"):
        clean = load_file(complete_directories(unbroken / "checkpoints")[1] / file)
        kept = load_file(complete_directories(directory / "checkpoints")[1] / file)
        assert all(torch.equal(kept[name], clean[name]) for name in clean)
    resumed = train(data, storage, "nan", **fault)
    assert resumed.code == 0, resumed.output
    assert_same_run(directory, unbroken, data, STEPS)


def test_workers_die_with_the_process_that_launched_them(data: Path, storage: Path, unbroken: Path) -> None:
    with Running(
        storage / "logs", arguments_for(data, storage, "orphans"), {"RAYDDPM_FAULT": "step.before:again:delay=0.5"}
    ) as running:
        directory = storage / "orphans"
        wait_for(lambda: checkpoint_names(directory) == ["step-00000002"])
        workers = workers_of(directory)
        running.send(signal.SIGKILL)
        running.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    resumed = train(data, storage, "orphans")
    assert resumed.code == 0, resumed.output
    assert "training from step 0 " not in resumed.output
    assert_same_run(directory, unbroken, data, STEPS)


def test_sigterm_to_one_worker_checkpoints_and_ends_the_whole_run(data: Path, storage: Path, unbroken: Path) -> None:
    """As a scheduler sends it to every process of a job, or an operator to one."""
    fault = {"RAYDDPM_FAULT": "step.before:again:delay=0.5"}
    with Running(storage / "logs", arguments_for(data, storage, "sigterm"), fault) as running:
        directory = storage / "sigterm"
        wait_for(lambda: len(read_metrics(directory).get("train/loss", [])) >= 3)
        workers_of(directory)[1].terminate()
        ended = running.wait()
    assert ended.code == 130, ended.output
    assert "stopped with a checkpoint" in ended.output
    assert "started again" not in ended.output
    step = step_of(complete_directories(directory / "checkpoints")[-1])
    assert step == read_metrics(directory)["train/loss"][-1][0]
    resumed = train(data, storage, "sigterm")
    assert resumed.code == 0, resumed.output
    assert f"training from step {step} to 8" in resumed.output
    assert_same_run(directory, unbroken, data, STEPS)


def test_a_worker_that_failed_after_a_checkpoint_in_a_window_logs_the_averages_of_all_its_steps(
    data: Path, storage: Path, unbroken: Path
) -> None:
    """Averages over four steps; the checkpoint of step 6 holds half of the second, and a worker dies in step 7."""
    every = ("--train.log_every_steps", "4", "--checkpoint.every_steps", "3")
    ended = train(data, storage, "window", *every, RAYDDPM_FAULT="step.after:step=7:rank=1:kill")
    assert ended.code == 0, ended.output
    assert "training from step 6 to 8" in ended.output
    each = losses(unbroken)
    assert losses(storage / "window") == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 4], rel=1e-12)


def test_workers_of_a_run_that_was_taken_over_are_not_started_again(data: Path, storage: Path, unbroken: Path) -> None:
    """Another process takes the lease and opens the run, as after the launching one had been asleep."""
    fault = {"RAYDDPM_FAULT": "step.before:again:delay=0.5"}
    directory = storage / "taken"
    with Running(storage / "logs", arguments_for(data, storage, "taken"), fault) as running:
        wait_for(lambda: checkpoint_names(directory) == ["step-00000002"])
        lease = read_json(directory / "lease.json")
        write_json_atomic(directory / "lease.json", lease | {"token": "another's"})
        ended = running.wait()
    assert ended.code == 1, ended.output
    assert "lease.json was taken over by another process: this one writes nothing more" in ended.output
    assert "started again" not in ended.output
    assert len(checkpoint_names(directory)) <= 2
    assert not (directory / "FINISHED.json").exists()
    assert read_json(directory / "lease.json")["token"] == "another's"
    (directory / "lease.json").unlink()
    resumed = train(data, storage, "taken")
    assert resumed.code == 0, resumed.output
    assert_same_run(directory, unbroken, data, STEPS)


def test_a_single_worker_is_started_again_too(data: Path, storage: Path) -> None:
    one = ("--workers.num_workers", "1")
    ended = train(data, storage, "single", *one, RAYDDPM_FAULT="step.loss:step=6:nan")
    assert ended.code == 0, ended.output
    assert "workers are started again after failure 1: NonFiniteError: the gradient of step 5 is not" in ended.output
    audited(storage / "single", data, STEPS)


def test_a_slow_save_is_not_taken_for_a_hang(data: Path, storage: Path, unbroken: Path) -> None:
    """Both workers wait for the last checkpoint, three times as long as a step may take."""
    slow = {"RAYDDPM_FAULT": "save.in_write:step=8:delay=12"}
    ended = train(data, storage, "slow", "--workers.step_timeout_seconds", "4", **slow)
    assert ended.code == 0, ended.output
    assert "started again" not in ended.output
    assert_same_run(storage / "slow", unbroken, data, STEPS)


def torchrun(data: Path, storage: Path, **environment: str) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, "trainer/main.py", *arguments_for(data, storage, "torchrun")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_torchrun_may_launch_the_workers_and_hand_sigterm_on(data: Path, storage: Path, unbroken: Path) -> None:
    running = torchrun(data, storage, RAYDDPM_FAULT="step.before:again:delay=0.5")
    directory = storage / "torchrun"
    wait_for(lambda: len(read_metrics(directory).get("train/loss", [])) >= 3)
    running.terminate()
    output, _ = running.communicate(timeout=300)
    assert "stopped with a checkpoint" in output
    step = step_of(complete_directories(directory / "checkpoints")[-1])
    assert step == read_metrics(directory)["train/loss"][-1][0]
    resumed = torchrun(data, storage)
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    assert f"training from step {step} to 8 on 2 workers" in output
    assert_same_run(directory, unbroken, data, STEPS)
    again = torchrun(data, storage)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "finished already at step 8" in output


def test_two_workers_then_a_kill_then_one_worker_with_zero2_train_the_run_of_one(data: Path, storage: Path) -> None:
    # Two channels in a normalisation group: with one, the biases before it have no gradient either.
    length: tuple[str, ...] = ("--checkpoint.every_steps", "10", "--model.channel_multipliers", "[2]")
    length += ("--optim.learning_rate", "2e-4", "--optim.warmup_steps", "0")
    one = ("--workers.num_workers", "1")
    whole = train(data, storage, "whole", *length, *one, "--train.num_steps", "60")
    assert whole.code == 0, whole.output
    first = train(data, storage, "chain", *length, "--train.num_steps", "20")
    assert first.code == 0, first.output
    further = ("--train.num_steps", "60", "--workers.max_failures", "0")
    killed = train(data, storage, "chain", *length, *further, RAYDDPM_FAULT="step.before:step=37:rank=1:kill")
    assert killed.code == 1
    assert "error: the workers failed: worker 1 died of signal 9" in killed.output
    assert checkpoint_names(storage / "chain")[-1] == "step-00000030"
    last = train(data, storage, "chain", *length, *one, "--train.num_steps", "60", "--workers.strategy", "zero2")
    assert last.code == 0, last.output
    assert "training from step 30 to 60 on 1 workers" in last.output
    found = audited(storage / "chain", data, 60)
    assert found.attempts == {1: (0, 2), 2: (20, 2), 3: (30, 1)}
    assert losses(storage / "chain") == pytest.approx(losses(storage / "whole"), rel=1e-5)
    ours, theirs = final_weights(storage / "chain"), final_weights(storage / "whole")
    for name, tensor in theirs.items():
        if not name.endswith(NO_GRADIENT):
            torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
