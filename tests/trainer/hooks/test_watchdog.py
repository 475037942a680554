"""The watchdog of rank 1 while rank 0, here a file that is written for it, saves and then falls behind."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.launch import Worker
from common.code import ROOT
from data_pipeline.loader import Batch
from trainer.engines.base import StepResult
from trainer.hooks.watchdog import EXIT_CODE, Watchdog

RANK_1 = """
import json, sys, time
from pathlib import Path
import torch
from cluster.launch import Worker
from common.files import write_json_atomic
from trainer.hooks.watchdog import Watchdog

folder, timeout, saving, silent = Path(sys.argv[1]), *map(float, sys.argv[2:])
watchdog = Watchdog(folder, Worker(1, 2, torch.device("cpu")), timeout, lambda: False)
watchdog(8, None, None)
(folder / "heartbeats").mkdir(parents=True, exist_ok=True)
end = time.monotonic() + saving
while time.monotonic() < end:
    heartbeat = {"rank": 0, "step": 8, "saved_unix_seconds": time.time(), "pid": 1, "unix_seconds": time.time()}
    write_json_atomic(folder / "heartbeats" / "rank-0.json", heartbeat)
    time.sleep(timeout / 10)
time.sleep(silent)
watchdog.close()
"""


def test_the_clock_goes_on_when_a_save_has_ended_from_where_it_stood(tmp_path: Path) -> None:
    """It is not over at once, although the last step was longer ago by then; nor does it stand still for ever."""
    seconds = {"patient": ("4", "7", "1"), "stuck": ("4", "7", "60")}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", RANK_1, str(tmp_path / name), *arguments],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, arguments in seconds.items()
    }
    output = {name: process.communicate(timeout=120)[1] for name, process in running.items()}
    assert running["patient"].returncode == 0, output["patient"]
    assert running["stuck"].returncode == EXIT_CODE, output["stuck"]
    assert "no step for 4 s after step 8: rank 0 (pid 1) is silent" in output["stuck"]


def is_a_file(run_directory: Path) -> None:
    """Neither heartbeats nor stacks can be written."""
    for name in ("heartbeats", "stacks"):
        (run_directory / name).touch()


def is_full(run_directory: Path) -> None:
    (run_directory / "stacks").mkdir()
    (run_directory / "stacks" / "rank-1.txt").symlink_to("/dev/full")


def hangs(run_directory: Path) -> None:
    """Nobody is at the other end of these pipes, so that opening them waits for ever."""
    for name in ("heartbeats/rank-0.json", "stacks/rank-1.txt"):
        path = run_directory / name
        path.parent.mkdir()
        os.mkfifo(path)


def make_one_step(run_directory: Path) -> None:
    """In a process of its own: one step, and then none."""
    watchdog = Watchdog(run_directory, Worker(1, 2, torch.device("cpu")), 0.5, lambda: False)
    images, loss = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1)
    watchdog(8, Batch(7, torch.arange(1), images), StepResult(loss, loss[0]))
    time.sleep(100)


@pytest.mark.parametrize("storage", [is_a_file, is_full, hangs])
def test_a_stuck_worker_ends_whatever_its_storage_does(tmp_path: Path, storage: Callable[[Path], None]) -> None:
    storage(tmp_path)
    process = multiprocessing.get_context("fork").Process(target=make_one_step, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == EXIT_CODE
