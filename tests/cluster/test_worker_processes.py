"""Processes of workers: the first failure is the one that is named, and none is left."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from cluster.launch import LaunchError, Resources, Worker, launch_local
from cluster.worker_processes import WorkerError, run_processes

pytestmark = pytest.mark.heavy


def rank_1_raises(worker: Worker, run_directory: str) -> None:
    """Rank 0 waits for rank 1 in a collective, and loses its connection."""
    if worker.rank == 1:
        raise ValueError(f"the image of rank {worker.rank} is broken")
    torch.distributed.all_reduce(torch.zeros(1))


def dies_or_waits(rank: int, folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def test_the_worker_that_raised_first_is_named_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(
        LaunchError, match=r"^worker 1 failed with ValueError: the image of rank 1 is broken$"
    ) as caught:
        launch_local(rank_1_raises, tmp_path, Resources(2, False, 1, 0, 60))
    assert "in rank_1_raises" in caught.value.details


def test_a_killed_worker_is_named_and_the_others_end(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"^worker 1 died of signal 9$"):
        run_processes(dies_or_waits, 2, str(tmp_path))
    assert not any(psutil.pid_exists(int(path.name)) for path in tmp_path.iterdir())
