"""The parts of one worker's training, made from run.json and wired to each other."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cluster.fault import Faults
from cluster.launch import Worker
from cluster.lease import Lease
from cluster.run_directory import LEDGER
from cluster.tracking.spool import Spool
from common.logs import as_json
from data_pipeline.loader import Batch
from data_pipeline.order import share
from models.diffusion import GaussianDiffusion
from models.ema import ExponentialMovingAverage
from models.kernels.norm import fuse_norms
from models.networks.table import build_model
from trainer.checkpoint import CheckpointStore, Resumed
from trainer.config.config import Config, from_dict
from trainer.data import open_data, open_stream, recorded_in
from trainer.engines.base import Engine, NonFiniteError
from trainer.engines.table import make_engine
from trainer.hooks.checkpoint import CheckpointHook
from trainer.hooks.faults import DrillHook, drilled, drilled_stream
from trainer.hooks.hardware import describe_hardware
from trainer.hooks.lease import LeaseHook
from trainer.hooks.log import LogHook
from trainer.hooks.metrics import MetricsHook
from trainer.hooks.progress import ProgressHook
from trainer.hooks.stop import StopHook
from trainer.hooks.watchdog import Watchdog
from trainer.hooks.window import Units, WindowRecorder
from trainer.loop import Hook
from trainer.non_finite import report_non_finite
from trainer.objective import Objective

_PROVENANCE = ("run", "uid", "config_digest", "manifest_digest", "versions", "forced_changes")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What the loop works with, and what is left to do around it."""

    batches: Iterable[Batch]
    engine: Engine
    ema: ExponentialMovingAverage
    hooks: Sequence[Hook]
    num_steps: int
    save: Callable[[int], None]
    """Checkpoint the state after a step, and wait until it is committed. Collective."""
    report: Callable[[NonFiniteError], None]
    """Write which images gave a gradient that is not finite."""
    close: Callable[[], None]
    """End the threads and close the files. A checkpoint that is being written becomes whole first."""


def assemble(worker: Worker, directory: Path, run: dict[str, Any], lease: Lease | None) -> Parts | None:
    """Build and restore everything. None if there is no step left to train. Collective.

    run: the content of run.json. lease: the run's; None if nobody else can take it over.
    """
    config = from_dict(run["config"])
    faults = Faults(run["faults"], directory, worker.rank)
    objective = _make_objective(config, faults)
    torch.manual_seed(config.train.seed)
    engine = make_engine(_make_network(config, objective, worker), objective, config, worker)
    ema = engine.make_ema(config.ema)
    store = CheckpointStore(directory, config, lease, {name: run[name] for name in _PROVENANCE}, faults)
    resumed = store.restore(engine, ema, worker)
    if worker.rank == 0:
        _log.info("training from step %d to %d on %d workers", resumed.step, config.train.num_steps, worker.world_size)
    if resumed.step >= config.train.num_steps:
        return None
    dataset, order = open_data(config, run["manifest_digest"], faults)
    stream = open_stream(config, worker, dataset, order, resumed.step)
    batches: Iterable[Batch] = drilled_stream(stream, faults) if faults else stream
    if config.data.ledger:
        batches = recorded_in(directory / LEDGER, batches, worker, dataset, order)
    spool = _open_spool(directory, run, resumed, worker) if worker.rank == 0 else None
    recorder = _make_recorder(config, worker, objective, resumed)
    metrics = MetricsHook(config, worker, engine, ema, stream, recorder, spool)
    checkpoints = CheckpointHook(config, engine, ema, recorder, store, spool)
    watchdog = Watchdog(directory, worker, config.workers.step_timeout_seconds, checkpoints.is_saving)
    save = partial(checkpoints.save, wait=True)
    hooks: list[Hook] = [
        watchdog,
        *((LogHook(resumed.step),) if as_json() else ()),
        # Before the metrics: whoever sees those may ask for a stop, which then keeps what was trained.
        ProgressHook(directory, worker, config, resumed.step),
        *((DrillHook(faults),) if faults else ()),
        *((LeaseHook(lease, worker),) if lease is not None else ()),
        metrics,
        checkpoints,
        StopHook(directory, worker, save),
    ]
    report = partial(
        report_non_finite, run_directory=directory, worker=worker, objective=objective, dataset=dataset, order=order
    )
    close = _closing(checkpoints.close, watchdog.close, stream.close, *((spool.close,) if spool is not None else ()))
    return Parts(batches, engine, ema, hooks, config.train.num_steps, save, report, close)


def _make_network(config: Config, objective: Objective, worker: Worker) -> nn.Module:
    network = build_model(config.model).to(objective.dtype)
    if config.workers.fused_kernels and worker.device.type == "cuda":
        fuse_norms(network)
    return network


def _make_objective(config: Config, faults: Faults) -> Objective:
    objective = Objective(
        GaussianDiffusion(config.diffusion),
        config.train.seed,
        config.data.horizontal_flip,
        torch.float64 if config.train.precision == "fp64" else torch.float32,
    )
    return drilled(objective, faults, config.train.global_batch_size) if faults else objective


def _make_recorder(config: Config, worker: Worker, objective: Objective, resumed: Resumed) -> WindowRecorder:
    units = None
    if config.train.reduction == "exact":
        num_units = config.train.global_batch_size // config.slice_images
        units = Units(num_units, share(num_units, worker.rank, worker.world_size)[0], config.slice_images)
    num_timesteps = objective.diffusion.num_timesteps
    return WindowRecorder(objective.timesteps, num_timesteps, worker.world_size, resumed.window, units)


def _open_spool(directory: Path, run: dict[str, Any], resumed: Resumed, worker: Worker) -> Spool:
    """Rank 0's spool. Points it already has beyond the checkpoint stay if they are those that will come again."""
    spool = Spool(directory, "train")
    spool.start(resumed.step, run["config_digest"], known=resumed.config_digest == run["config_digest"])
    spool.tags({"hardware": describe_hardware(worker, run["config"]["workers"]["cpus_per_worker"])})
    return spool


def _closing(*ends: Callable[[], None]) -> Callable[[], None]:
    """A function that calls all of them in order, whatever one of them raises."""
    stack = ExitStack()
    for end in reversed(ends):
        stack.callback(end)
    return stack.close
