"""What one worker does, under Ray or without: build everything from run.json, resume, train."""

import logging
from pathlib import Path

import torch

from cluster.launch import Worker
from cluster.lease import Lease
from cluster.spool import Spool
from cluster.storage import read_json
from data_pipeline.demo import resolve_path
from data_pipeline.loader import BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.shards import open_dataset
from models.config import build_model
from models.diffusion import GaussianDiffusion
from trainer.checkpoint import CheckpointStore
from trainer.config import Config, from_dict
from trainer.engines import make_engine
from trainer.hooks import CheckpointHook, MetricsHook, StopHook, Stopped
from trainer.loop import Hook, train
from trainer.objective import Objective
from trainer.run import LEASE_STALE_SECONDS
from trainer.watchdog import Watchdog

_log = logging.getLogger(__name__)


def train_worker(worker: Worker, run_directory: str) -> None:
    """Train (or go on training) the run described by `run_directory`/run.json to its last step."""
    directory = Path(run_directory)
    run = read_json(directory / "run.json")
    config = from_dict(run["config"])
    objective = Objective(
        GaussianDiffusion(config.diffusion),
        config.train.seed,
        config.data.horizontal_flip,
        torch.float64 if config.train.precision == "fp64" else torch.float32,
    )
    torch.manual_seed(config.train.seed)
    model = build_model(config.model).to(objective.dtype)
    engine = make_engine(model, objective, config, worker)
    ema = engine.make_ema(config.ema)
    provenance = {name: run[name] for name in ("run", "uid", "config_digest", "manifest_digest", "versions")}
    lease = Lease(directory / "lease.json", run["lease_token"], run["num_attempts"], LEASE_STALE_SECONDS)
    lease.check()
    store = CheckpointStore(directory, config, lease, provenance)
    start_step = store.restore(engine, ema)
    if worker.rank == 0:
        _log.info("training from step %d to %d on %d workers", start_step, config.train.num_steps, worker.world_size)
    if start_step >= config.train.num_steps:
        return
    stream = open_stream(config, worker, start_step, run["manifest_digest"])
    spool = Spool(directory, "train") if worker.rank == 0 else None
    watchdog = Watchdog(directory, worker, config.workers.step_timeout_seconds)
    checkpoints = CheckpointHook(config, engine, ema, store, spool)
    hooks: list[Hook] = [
        watchdog,
        MetricsHook(config, worker, objective, engine, ema, stream, spool),
        checkpoints,
        StopHook(directory, worker),
    ]
    try:
        train(stream, engine, ema, hooks, config.train.num_steps)
    except Stopped as stopped:
        checkpoints.save(stopped.step, wait=True)
    finally:
        watchdog.close()
        stream.close()
        if spool is not None:
            spool.close()


def open_stream(config: Config, worker: Worker, start_step: int, manifest_digest: str) -> BatchStream:
    """This worker's part of every global batch from `start_step` on.

    Raises ValueError if the data on disk are not those the run began with.
    """
    dataset = open_dataset(resolve_path(config.data.path))
    manifest = dataset.manifest
    if manifest.digest != manifest_digest:
        raise ValueError(
            f"{config.data.path} has data digest {manifest.digest}, but the run began with {manifest_digest}: "
            "restore the data set or start a new run"
        )
    order = SampleOrder(
        manifest.shard_sizes,
        config.train.seed,
        config.train.global_batch_size,
        manifest.digest,
    )
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
