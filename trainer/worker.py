"""What one worker does, under Ray or without: build everything from run.json, resume, train."""

from pathlib import Path
from typing import Any

from cluster.launch import Worker
from cluster.lease import Lease
from cluster.run_directory import RUN
from common.files import read_json
from common.logs import tell
from trainer.assembly import assemble
from trainer.engines.base import NonFiniteError
from trainer.hooks.stop import Stopped, sigterm_stops
from trainer.loop import train


def train_worker(worker: Worker, run_directory: str, lease: Lease | None = None) -> None:
    """Train (or go on training) the run described by `run_directory`/run.json to its last step.

    lease: the launching process's, handed on by it and never read from the run directory, where a process that has
    taken the run over may have put its own. None: this worker writes nothing, or nobody else can.
    """
    directory = Path(run_directory)
    with sigterm_stops(directory):
        run = read_json(directory / RUN)
        tell(run=run["run"], rank=worker.rank)
        _train(worker, directory, run, lease)


def _train(worker: Worker, directory: Path, run: dict[str, Any], lease: Lease | None) -> None:
    if lease is not None:
        lease.check()
    parts = assemble(worker, directory, run, lease)
    if parts is None:
        return
    try:
        train(parts.batches, parts.engine, parts.ema, parts.hooks, parts.num_steps)
    except Stopped as stopped:
        parts.save(stopped.step)
    except NonFiniteError as error:
        parts.report(error)
        raise
    finally:
        parts.close()
