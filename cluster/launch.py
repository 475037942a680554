"""What a worker is, what a launcher is asked for, and the launcher of plain processes, without Ray."""

import logging
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessContext, ProcessExitedException, ProcessRaisedException

from common.process import end_with_parent, keep_freed_memory

SIGNAL_SECONDS = 0.5
"""A launching process wakes up so often: Python runs a signal's handler on the main thread, which sleeps on where the
kernel has handed the signal to another, as it does when SIGCONT comes just before (Slurm sends both)."""
_GRACE_SECONDS = 2.0
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
    """Under Ray: train with so few while the cluster has no room for num_workers; None: wait until it has."""
    resize_check_seconds: int = 60


WorkerFunction = Callable[[Worker, str], None]
"""A function of an importable module (never of `__main__`), and the run directory it works on."""


class LaunchError(RuntimeError):
    """The workers failed more often than allowed; the message is the last worker's."""


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
            _log.warning("workers are started again after failure %d: %s", failures, error)


def _run_here(function: WorkerFunction, run_directory: str, resources: Resources) -> None:
    """The only worker, in this process, where debuggers and profilers reach it."""
    try:
        _local_worker(0, function, run_directory, resources, "")
    except (ValueError, OSError):
        raise  # the user's to mend: it would fail again
    except Exception as error:
        traceback.print_exc()
        raise LaunchError(f"{type(error).__name__}: {error}") from error


def _spawn(function: WorkerFunction, run_directory: str, resources: Resources) -> None:
    """One process a worker, to their end."""
    address = f"tcp://127.0.0.1:{_free_port()}"
    _join(
        torch.multiprocessing.spawn(
            _local_worker, args=(function, run_directory, resources, address), nprocs=resources.num_workers, join=False
        )
    )


def _join(context: ProcessContext) -> None:
    """Wait until all workers have ended. Raises LaunchError when one has failed, with the others ended too.

    torch's own join would send those SIGTERM, which workers take for the wish of a scheduler to end the run.
    """
    processes: Sequence[BaseProcess] = context.processes
    while (living := [p for p in processes if p.is_alive()]) and not any(p.exitcode for p in processes):
        multiprocessing.connection.wait([process.sentinel for process in living], SIGNAL_SECONDS)
    deadline = time.monotonic() + (_GRACE_SECONDS if living else 0)
    for process in living:
        process.join(max(0.0, deadline - time.monotonic()))
    died = [
        f"worker {rank} died of signal {-code}" for rank, p in enumerate(processes) if (code := p.exitcode or 0) < 0
    ]
    for process in living:
        process.kill()
    try:
        context.join()
    except (ProcessExitedException, ProcessRaisedException) as error:
        # What the others raise when one dies is a consequence.
        raise LaunchError("; ".join(died) or str(error).strip()) from error


def _local_worker(
    local_rank: int, function: WorkerFunction, run_directory: str, resources: Resources, address: str
) -> None:
    if address.startswith("tcp://"):
        _settle_in_child()
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
    dist.init_process_group(
        "nccl" if resources.use_gpu else "gloo",
        init_method=address,
        timeout=timedelta(seconds=resources.timeout_seconds),
        rank=-1 if from_torchrun else local_rank,
        world_size=-1 if from_torchrun else resources.num_workers,
    )
    if from_torchrun:
        dist.barrier()  # rank 0 comes here once it has opened the run
    try:
        function(Worker(dist.get_rank(), dist.get_world_size(), device), run_directory)
    finally:
        dist.destroy_process_group()


def _settle_in_child() -> None:
    """The launching process turns signals into a stop after a checkpoint; when it dies, its workers must too."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    end_with_parent(signal.SIGKILL, parent.pid if parent else None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_torchrun() -> bool:
    """True in a process that torchrun started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def in_ray_job() -> bool:
    """True in the driver of a submitted job, whose working directory is Ray's copy and goes with the job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ or "_ray_pkg_" in sys.path[0] or "_ray_pkg_" in os.getcwd()
