"""A worker's batches: the run's data set, its order, and this worker's part of every global batch."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.fault import Faults
from cluster.launch import Worker
from data_pipeline.demo.sets import resolve_path
from data_pipeline.ledger import next_attempt, recorded
from data_pipeline.loader import Batch, BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.storage.dataset import Dataset
from data_pipeline.storage.shards import open_dataset, reading_options
from trainer.config.config import Config


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


def recorded_in(
    folder: Path, batches: Iterable[Batch], worker: Worker, dataset: Dataset, order: SampleOrder
) -> Iterator[Batch]:
    """The same batches, recorded in the ledger `folder` under a number that all workers of this attempt share."""
    attempt = torch.tensor(next_attempt(folder), device=worker.device)
    if worker.world_size > 1:
        dist.broadcast(attempt, src=0)
    return recorded(batches, folder, int(attempt.item()), worker.rank, worker.world_size, dataset, order)
