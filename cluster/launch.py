"""What a worker is, what a launcher is asked for, and the launcher of plain processes, without Ray."""

import contextlib
import logging
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.network import address_towards, cannot_connect, outer_address, use_interface
from cluster.progress import write_progress
from cluster.worker_processes import WorkerError, noting_failure, run_processes
from common.process import keep_freed_memory

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """One process of the group; torch.distributed is initialised when `world_size` > 1 or under Ray."""

    rank: int
    world_size: int
    device: torch.device
    notified: Callable[[], bool] = lambda: False
    """Whether the cluster has said that it will take a worker's machine away."""


@dataclass(frozen=True)
class Resources:
    """What to ask for. timeout_seconds bounds every collective."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: int
    max_failures: int
    timeout_seconds: int
    min_workers: int | None = None
    """Under Ray: train with this many while the cluster has no room for num_workers; None: wait until it has."""
    resize_check_seconds: int = 60


WorkerFunction = Callable[[Worker, str], None]
"""A function of an importable module (never of `__main__`), and the run directory it works on."""


class LaunchError(RuntimeError):
    """The workers failed more often than allowed. The message is one line, on what failed first in the last attempt."""

    def __init__(self, reason: str, details: str = ""):
        """details: the traceback of the worker that failed first, as far as there is one."""
        super().__init__(reason)
        self.details = details


def launch_local(
    function: WorkerFunction,
    run_directory: Path,
    resources: Resources,
    before_restart: Callable[[], object] = lambda: None,
) -> None:
    """Run the workers on this machine without Ray: in this process if there is one, else in spawned processes.

    After a failure they are started again, at most max_failures times. before_restart: called first; what it raises
    ends the launch. Under torchrun (RANK and WORLD_SIZE set) this process is one of the workers that torchrun started,
    and torchrun restarts them. Raises LaunchError; a single worker's ValueError and OSError are raised as they are.
    """
    if in_torchrun():
        _local_worker(int(os.environ.get("LOCAL_RANK", "0")), function, str(run_directory), resources, "env://")
        return
    attempt = _run_here if resources.num_workers == 1 else _spawn
    failures = 0
    while True:
        try:
            attempt(function, str(run_directory), resources)
            return
        except LaunchError as error:
            failures += 1
            before_restart()
            if 0 <= resources.max_failures < failures:
                raise
            _log.error("%s", error.details)
            _log.warning("workers are started again after failure %d: %s", failures, error)


def _run_here(function: WorkerFunction, run_directory: str, resources: Resources) -> None:
    """The only worker, in this process, where debuggers and profilers reach it."""
    try:
        _local_worker(0, function, run_directory, resources, "")
    except (ValueError, OSError):
        raise  # the user's to mend: it would fail again
    except Exception as error:
        raise LaunchError(f"{type(error).__name__}: {error}", traceback.format_exc()) from error


def _spawn(function: WorkerFunction, run_directory: str, resources: Resources) -> None:
    """One process per worker, to their end."""
    address = f"tcp://127.0.0.1:{_free_port()}"
    try:
        run_processes(_local_worker, resources.num_workers, function, run_directory, resources, address)
    except WorkerError as error:
        raise LaunchError(str(error), error.details or str(error)) from error


def _local_worker(
    local_rank: int, function: WorkerFunction, run_directory: str, resources: Resources, address: str
) -> None:
    if local_rank == 0:
        write_progress(Path(run_directory), "building the network, opening the data")
    torch.set_num_threads(resources.cpus_per_worker)
    device = torch.device("cuda", local_rank) if resources.use_gpu else torch.device("cpu")
    if resources.use_gpu:
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    if not address:
        function(Worker(0, 1, device), run_directory)
        return
    from_torchrun = address == "env://"
    _connect(local_rank, resources, address)
    try:
        # Noted before the connections are closed, which the others would fail by.
        with contextlib.nullcontext() if from_torchrun else noting_failure(local_rank):
            function(Worker(dist.get_rank(), dist.get_world_size(), device), run_directory)
    finally:
        dist.destroy_process_group()


def _connect(local_rank: int, resources: Resources, address: str) -> None:
    """Join the group. Raises ConnectionError, of one line, if workers of torchrun do not find each other."""
    from_torchrun = address == "env://"
    ends = [_end_of_torchrun()] if from_torchrun else []
    try:
        dist.init_process_group(
            "nccl" if resources.use_gpu else "gloo",
            init_method=address,
            timeout=timedelta(seconds=resources.timeout_seconds),
            rank=-1 if from_torchrun else local_rank,
            world_size=-1 if from_torchrun else resources.num_workers,
        )
    except RuntimeError as error:
        if from_torchrun:
            raise ConnectionError(cannot_connect(ends, error)) from error
        raise
    if from_torchrun:
        dist.barrier()  # rank 0 comes here once it has opened the run


def _end_of_torchrun() -> str:
    """Over one host its loopback serves; over several, what MASTER_ADDR is reached by."""
    master = os.environ["MASTER_ADDR"]
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        return use_interface(address_towards(master))
    return use_interface(outer_address(master))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_torchrun() -> bool:
    """True in a process that torchrun started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
