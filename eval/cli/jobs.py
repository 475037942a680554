"""What several commands of `python -m eval` need: the job that is meant, the pool, a stop at the next block."""

import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.run_directory import RUN
from eval.settings import PoolSettings

if TYPE_CHECKING:
    from eval.backlog import Job
    from eval.sampling.evaluation import RunBlocks

DEFAULT_PROTOCOL = "fd_efficientnet_lite0_5k"


def run_blocks(pool: PoolSettings) -> "RunBlocks":
    from eval.sampling.evaluation import run_here

    if pool.num_actors == 0:
        return run_here
    from eval.sampling.ray_pool import RayPool

    return RayPool(pool)


def choose_job(run_directory: Path, protocol: str, step: int | None) -> "Job":
    """The newest checkpoint, or the one at `step`, under a protocol."""
    from eval.backlog import Selection, jobs_of_run
    from eval.protocol import parse_protocol

    check_run(run_directory)
    jobs = jobs_of_run(run_directory.resolve(), [parse_protocol(protocol)], Selection())
    wanted = [job for job in jobs if step in (None, job.step)]
    if not wanted:
        known = ", ".join(str(step) for step in sorted({job.step for job in jobs})) or "none"
        which = "no complete checkpoint" if step is None else f"no complete checkpoint at step {step}"
        raise FileNotFoundError(f"{run_directory} has {which}; there are: {known}")
    return wanted[0]


def check_run(run_directory: Path) -> None:
    if not (run_directory / RUN).is_file():
        raise FileNotFoundError(f"{run_directory} holds no run.json; give the folder of a run")


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set: the evaluation in progress ends at its next block and can be resumed."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
