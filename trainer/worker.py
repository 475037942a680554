"""What one worker does, under Ray or without: build everything from run.json, resume, train."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.fault import Faults
from cluster.launch import Worker
from cluster.lease import Lease
from cluster.spool import Spool
from common.files import read_json, write_json_atomic
from data_pipeline.demo.sets import resolve_path
from data_pipeline.ledger import next_attempt, recorded
from data_pipeline.loader import Batch, BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.storage.dataset import Dataset
from data_pipeline.storage.shards import open_dataset, reading_options
from models.diffusion import GaussianDiffusion
from models.networks import build_model
from trainer.checkpoint import CheckpointStore
from trainer.config.config import Config, from_dict
from trainer.engines.base import NonFiniteError, make_engine
from trainer.hooks.faults import DrillHook, drilled, drilled_stream
from trainer.hooks.metrics import CheckpointHook, LeaseHook, MetricsHook
from trainer.hooks.stop import StopHook, Stopped, sigterm_stops
from trainer.hooks.watchdog import Watchdog
from trainer.loop import Hook, train
from trainer.objective import Objective

_log = logging.getLogger(__name__)


def train_worker(worker: Worker, run_directory: str, lease: Lease | None = None) -> None:
    """Train (or go on training) the run described by `run_directory`/run.json to its last step.

    lease: the launching process's, handed on by it and never read from the run directory, where a process that has
    taken the run over may have put its own. None: this worker writes nothing, or nobody else can.
    """
    directory = Path(run_directory)
    with sigterm_stops(directory):
        _train(worker, directory, read_json(directory / "run.json"), lease)


def _train(worker: Worker, directory: Path, run: dict[str, Any], lease: Lease | None) -> None:
    if lease is not None:
        lease.check()
    config = from_dict(run["config"])
    objective = Objective(
        GaussianDiffusion(config.diffusion),
        config.train.seed,
        config.data.horizontal_flip,
        torch.float64 if config.train.precision == "fp64" else torch.float32,
    )
    faults = Faults(run["faults"], directory, worker.rank)
    if faults:
        objective = drilled(objective, faults, config.train.global_batch_size)
    torch.manual_seed(config.train.seed)
    model = build_model(config.model).to(objective.dtype)
    engine = make_engine(model, objective, config, worker)
    ema = engine.make_ema(config.ema)
    provenance = {
        name: run[name] for name in ("run", "uid", "config_digest", "manifest_digest", "versions", "forced_changes")
    }
    store = CheckpointStore(directory, config, lease, provenance, faults)
    start_step, window = store.restore(engine, ema, worker)
    if worker.rank == 0:
        _log.info("training from step %d to %d on %d workers", start_step, config.train.num_steps, worker.world_size)
    if start_step >= config.train.num_steps:
        return
    dataset, order = open_data(config, run["manifest_digest"], faults)
    stream = open_stream(config, worker, dataset, order, start_step)
    batches: Iterable[Batch] = drilled_stream(stream, faults) if faults else stream
    if config.data.ledger:
        batches = _recorded(batches, worker, directory / "ledger", dataset, order)
    spool = Spool(directory, "train") if worker.rank == 0 else None
    metrics = MetricsHook(config, worker, objective, engine, ema, stream, spool, window)
    checkpoints = CheckpointHook(config, engine, ema, metrics.recorder, store, spool)
    watchdog = Watchdog(directory, worker, config.workers.step_timeout_seconds, checkpoints.is_saving)
    hooks: list[Hook] = [
        watchdog,
        *((DrillHook(faults),) if faults else ()),
        *((LeaseHook(lease, worker),) if lease is not None else ()),
        metrics,
        checkpoints,
        StopHook(directory, worker, partial(checkpoints.save, wait=True)),
    ]
    try:
        train(batches, engine, ema, hooks, config.train.num_steps)
    except Stopped as stopped:
        checkpoints.save(stopped.step, wait=True)
    except NonFiniteError as error:
        _report_non_finite(error, directory, worker, objective, dataset, order)
        raise
    finally:
        checkpoints.close()
        watchdog.close()
        stream.close()
        if spool is not None:
            spool.close()


def open_data(config: Config, manifest_digest: str, faults: Faults) -> tuple[Dataset, SampleOrder]:
    """The data set and the order of its samples. Raises ValueError if the data are not those the run began with."""
    path = resolve_path(config.data.path)
    options = reading_options(asdict(config.data))
    dataset = open_dataset(path, expected_digest=manifest_digest, on_try=faults.at("fetch"), **options)
    manifest = dataset.manifest
    seed, global_batch_size = config.train.seed, config.train.global_batch_size
    return dataset, SampleOrder(manifest.shard_sizes, seed, global_batch_size, manifest.digest, config.slice_images)


def open_stream(config: Config, worker: Worker, dataset: Dataset, order: SampleOrder, start_step: int) -> BatchStream:
    """This worker's part of every global batch from `start_step` on."""
    return BatchStream(
        dataset,
        order,
        worker.rank,
        worker.world_size,
        start_step,
        num_threads=config.data.num_threads,
        num_prefetch_batches=config.data.num_prefetch_batches,
        pin_memory=worker.device.type == "cuda",
    )


def _recorded(
    batches: Iterable[Batch], worker: Worker, folder: Path, dataset: Dataset, order: SampleOrder
) -> Iterator[Batch]:
    """The same batches, recorded in the run's ledger under a number that all workers of this attempt share."""
    attempt = torch.tensor(next_attempt(folder), device=worker.device)
    if worker.world_size > 1:
        dist.broadcast(attempt, src=0)
    return recorded(batches, folder, int(attempt.item()), worker.rank, worker.world_size, dataset, order)


def _report_non_finite(
    error: NonFiniteError, directory: Path, worker: Worker, objective: Objective, dataset: Dataset, order: SampleOrder
) -> None:
    """Write what this worker's batch was: `nonfinite/step-<s>-rank-<r>.json`, a row an image."""
    counters = error.batch.counters
    rows = zip(
        [dataset.key(int(index)) for index in order.samples(counters.numpy())],
        counters.tolist(),
        objective.timesteps(counters).tolist(),
        [str(loss) for loss in error.losses.tolist()],
        strict=True,
    )
    folder = directory / "nonfinite"
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{error.batch.step:08d}-rank-{worker.rank}.json"
    names = ("key", "sample_counter", "t", "loss")
    write_json_atomic(path, {"error": str(error), "images": [dict(zip(names, row, strict=True)) for row in rows]})
    _log.error("%s; this worker's images are in %s", error, path)
