"""The formulas of benchmarks/scale.py and failures.py against processes, files and runs that are played through."""

import os
import socket
import statistics
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from benchmarks.failures import (
    Failures,
    allowed_restart_seconds,
    best_interval_seconds,
    expected_share,
    simulated_share,
)
from benchmarks.scale import (
    all_reduce_bytes,
    checkpoint_bytes,
    most_shards_of_a_worker,
    most_shards_of_all_workers,
)
from cluster.storage import complete_directories
from data_pipeline.order import SampleOrder
from tests.support.failures.processes import CONTEXT, settle
from tests.support.servers.data_servers import free_port
from tests.support.trainer import tiny_config, train_locally

_BYTES_RECEIVED = 128
"""Where Linux' tcp_info has tcpi_bytes_received, 64 bits."""
_NUM_STEPS = 20


def received_bytes() -> int:
    """By this process, over all of its TCP connections that are open now."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket, or closed by now
            continue
        with connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("Q", info, _BYTES_RECEIVED)[0]
    return total


def _train(environment: dict[str, str], rank: int, num_workers: int, port: int, folder: Path) -> None:
    settle(environment)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_workers)
    model = DistributedDataParallel(torch.nn.Linear(400, 600))
    for step in range(_NUM_STEPS + 1):
        if step == 1:  # before it: the groups' set-up, and weights that are handed round
            before = received_bytes()
        model(torch.ones(1, 400)).sum().backward()
    (folder / str(rank)).write_text(str(received_bytes() - before))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.heavy
@pytest.mark.parametrize("num_workers", [2, 3])
def test_each_worker_receives_what_the_ring_says(num_workers: int, tmp_path: Path) -> None:
    port = free_port()
    workers = [
        CONTEXT.Process(target=_train, args=(dict(os.environ), rank, num_workers, port, tmp_path))
        for rank in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    gradients = 4 * (400 * 600 + 600)
    for rank in range(num_workers):
        received = int((tmp_path / str(rank)).read_text()) / _NUM_STEPS
        assert received == pytest.approx(all_reduce_bytes(gradients, num_workers), rel=0.02)


def test_a_checkpoint_holds_sixteen_bytes_for_each_parameter(data: Path, tmp_path: Path) -> None:
    train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 2}))
    (directory,) = complete_directories(tmp_path / "run" / "checkpoints")
    tensors = {path.stem: load_file(path) for path in directory.glob("*.safetensors")}
    num_parameters = sum(tensor.numel() for tensor in tensors["model"].values())
    num_bytes = sum(tensor.nbytes for file in tensors.values() for tensor in file.values())
    assert num_bytes - tensors["optimizer"]["step"].nbytes == checkpoint_bytes(num_parameters)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 64, 1000])
def test_workers_read_about_their_share_of_the_shards(num_workers: int) -> None:
    num_shards = 500
    order = SampleOrder([100] * num_shards, 0, 4000, "d")
    for epoch in (0, 7):
        read = [len(order.epoch_shards(epoch, rank, num_workers)) for rank in range(num_workers)]
        assert max(read) <= most_shards_of_a_worker(num_shards, 100, 4000, num_workers)
        assert num_shards <= sum(read) <= most_shards_of_all_workers(num_shards, num_workers)


@pytest.mark.parametrize(
    "given",
    [
        Failures(180.0, 8.0, 10.0, stall_seconds=0.5, write_seconds=4.0),
        Failures(60.0, 45.0, 20.0, write_seconds=20.0),
        Failures(3600.0, 0.0, 600.0),
    ],
)
def test_a_run_that_is_played_through_trains_the_share_of_the_formula(given: Failures) -> None:
    shares = [simulated_share(given, 500, seed) for seed in range(30)]
    error = statistics.stdev(shares) / len(shares) ** 0.5
    assert expected_share(given) == pytest.approx(statistics.mean(shares), abs=4 * error)
    assert error < 0.01


def test_the_best_interval_is_near_youngs_and_the_allowed_restart_reaches_the_goal() -> None:
    given = Failures(3600.0, 10.0, 60.0, stall_seconds=1.0)
    best = best_interval_seconds(given)
    assert best == pytest.approx((2 * 1.0 * 3600.0) ** 0.5, rel=0.03)  # Young 1974, to first order
    given = replace(given, checkpoint_every_seconds=best)
    allowed = allowed_restart_seconds(given, goal=0.9)
    assert expected_share(replace(given, restart_seconds=allowed)) == pytest.approx(0.9)
