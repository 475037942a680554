import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cluster.launch import Worker
from cluster.lease import LostLeaseError
from cluster.run_directory import step_of
from cluster.storage import DamagedError, complete_directories, verify
from cluster.tracking.spool import read_metrics
from common.code import ROOT
from tests.support.trainer import (
    command,
    final_weights,
    losses,
    signal_another_thread,
    tiny_config,
    train_locally,
)
from trainer.config.plan import plan
from trainer.run import open_run, run_lease
from trainer.worker import train_worker

pytestmark = pytest.mark.heavy


def equal_weights(one: Path, other: Path) -> bool:
    return all(
        torch.equal(a[name], b[name])
        for file in ("ema.safetensors", "model.safetensors", "optimizer.safetensors")
        for a, b in [(final_weights(one, file), final_weights(other, file))]
        for name in a.keys() | b.keys()
    )


def test_a_killed_run_ends_as_an_unbroken_one(data: Path, tmp_path: Path) -> None:
    """SIGKILL to every process of a two-worker run after its second checkpoint, then the same command again."""
    arguments = [
        *("--preset", "demo", "--launcher", "local", "--data.path", str(data), "--workers.num_workers", "2"),
        *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
        *("--train.num_steps", "30", "--train.global_batch_size", "12", "--train.log_every_steps", "1"),
        *("--checkpoint.every_steps", "5", "--run.storage", str(tmp_path)),
    ]
    unbroken = command(*arguments, "--run.name", "unbroken")
    assert unbroken.returncode == 0, unbroken.stderr
    killed = subprocess.Popen(
        [sys.executable, "trainer/main.py", *arguments, "--run.name", "killed"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while len(complete_directories(checkpoints)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "FINISHED.json").exists()
    last = max(step for step, _, _ in read_metrics(tmp_path / "killed")["train/loss"])
    assert 10 <= last < 30
    resumed = command(*arguments, "--run.name", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert "training from step 0 " not in resumed.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "unbroken")
    assert equal_weights(tmp_path / "killed", tmp_path / "unbroken")
    again = command(*arguments, "--run.name", "killed", "--train.num_steps", "20")
    assert again.returncode == 0
    assert "finished already at step 30" in again.stdout


def test_raising_num_steps_trains_on(data: Path, tmp_path: Path) -> None:
    unbroken = train_locally(tiny_config(data, tmp_path, "unbroken"))
    train_locally(tiny_config(data, tmp_path, "longer", train={"num_steps": 3}))
    longer = train_locally(tiny_config(data, tmp_path, "longer"))
    assert losses(longer.directory) == losses(unbroken.directory)
    assert equal_weights(longer.directory, unbroken.directory)


def test_another_number_of_workers_goes_on_with_the_same_run(data: Path, tmp_path: Path) -> None:
    unbroken = train_locally(tiny_config(data, tmp_path, "unbroken"))
    train_locally(tiny_config(data, tmp_path, "moved", train={"num_steps": 4}, workers={"num_workers": 2}))
    moved = train_locally(tiny_config(data, tmp_path, "moved"))
    assert losses(moved.directory) == pytest.approx(losses(unbroken.directory), rel=1e-5)


def test_a_damaged_checkpoint_is_passed_over_loudly(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planned = train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 4}))
    unbroken = train_locally(tiny_config(data, tmp_path, "unbroken"))
    newest = complete_directories(planned.directory / "checkpoints")[-1]
    damage(newest)
    resumed = train_locally(tiny_config(data, tmp_path, "run"))
    assert f"{newest.name}: model.safetensors does not match" in caplog.text
    assert losses(resumed.directory) == losses(unbroken.directory)
    assert equal_weights(resumed.directory, unbroken.directory)


def test_without_any_whole_checkpoint_training_does_not_start_over(data: Path, tmp_path: Path) -> None:
    planned = train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 4}))
    for directory in complete_directories(planned.directory / "checkpoints"):
        (directory / "model.safetensors").unlink()
    with run_lease(planned.directory) as lease:
        open_run(plan(tiny_config(data, tmp_path, "run"), "tiny"), lease)
        with pytest.raises(DamagedError, match="none of the 2 checkpoints"):
            train_worker(Worker(0, 1, torch.device("cpu")), str(planned.directory))


def test_retention_keeps_the_newest_and_the_permanent(data: Path, tmp_path: Path) -> None:
    checkpoint = {"every_steps": 1, "keep_last": 2, "keep_every_steps": 3}
    planned = train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 8}, checkpoint=checkpoint))
    assert [step_of(p) for p in complete_directories(planned.directory / "checkpoints")] == [3, 6, 7, 8]


def test_no_pickle_is_in_a_checkpoint(data: Path, tmp_path: Path) -> None:
    planned = train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 2}))
    names = {p.name for p in complete_directories(planned.directory / "checkpoints")[-1].iterdir()}
    assert names == {
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "snapshot.json",
        "state.json",
        "COMPLETE.json",
    }


@pytest.mark.parametrize("num_workers", [1, 2])
def test_sigterm_ends_in_a_checkpoint_and_the_same_command_goes_on(
    data: Path, tmp_path: Path, num_workers: int
) -> None:
    arguments = [
        *("--preset", "demo", "--launcher", "local", "--data.path", str(data)),
        *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
        *("--train.global_batch_size", "12", "--train.log_every_steps", "1", "--checkpoint.every_steps", "10000"),
        *("--workers.num_workers", str(num_workers), "--run.storage", str(tmp_path), "--run.name", "run"),
    ]
    running = subprocess.Popen(
        [sys.executable, "trainer/main.py", *arguments, "--train.num_steps", "100000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not read_metrics(tmp_path / "run").get("train/loss") and time.monotonic() < deadline:
        time.sleep(0.05)
    signal_another_thread(running.pid, signal.SIGTERM)
    time.sleep(0.1)
    signal_another_thread(running.pid, signal.SIGTERM)  # as timeout(1) does: to the process, then to its group
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 130, errors
    assert "stopped with a checkpoint" in errors
    (stopped,) = complete_directories(tmp_path / "run" / "checkpoints")
    step = step_of(stopped)
    assert step == read_metrics(tmp_path / "run")["train/loss"][-1][0]
    resumed = command(*arguments, "--train.num_steps", str(step + 2))
    assert resumed.returncode == 0, resumed.stderr
    assert f"training from step {step} to {step + 2}" in resumed.stderr


def test_a_second_process_is_refused_while_the_first_trains(data: Path, tmp_path: Path) -> None:
    planned = plan(tiny_config(data, tmp_path, "run"), "tiny")
    arguments = ["--preset", "demo", "--data.path", str(data), "--run.storage", str(tmp_path), "--run.name", "run"]
    with run_lease(planned.directory) as lease:
        open_run(planned, lease)
        before = (planned.directory / "run.json").read_bytes()
        second = command(*arguments, "--launcher", "local")
    assert second.returncode == 2
    assert "is being trained by another process" in second.stderr
    assert (planned.directory / "run.json").read_bytes() == before


def test_a_worker_whose_run_was_taken_over_commits_nothing(data: Path, tmp_path: Path) -> None:
    planned = plan(tiny_config(data, tmp_path, "run"), "tiny")
    with run_lease(planned.directory) as lease:
        open_run(planned, lease)
        state = json.loads(lease.path.read_text())
        lease.path.write_text(json.dumps(state | {"token": "another"}))
        with pytest.raises(LostLeaseError):
            train_worker(Worker(0, 1, torch.device("cpu")), str(planned.directory), dataclasses.replace(lease))
    assert complete_directories(planned.directory / "checkpoints") == []


def damage(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)


def test_retention_counts_no_damaged_checkpoint_and_never_deletes_what_was_resumed_from(
    data: Path, tmp_path: Path
) -> None:
    """Whole is step 2 alone; the steps after it are committed again beside their damaged namesakes."""
    kept = {"keep_last": 5, "keep_every_steps": 0}
    planned = train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 8}, checkpoint=kept))
    for checkpoint in complete_directories(planned.directory / "checkpoints")[1:]:
        damage(checkpoint)
    kept = {"keep_last": 2, "keep_every_steps": 0}
    train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 9}, checkpoint=kept))
    left = complete_directories(planned.directory / "checkpoints")
    assert [step_of(checkpoint) for checkpoint in left] == [8, 9]
    for checkpoint in left:
        verify(checkpoint)
