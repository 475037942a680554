"""A run as planned: everything that can be wrong is found here, before a worker is started."""

import logging
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cluster.fault import requested
from cluster.launch import in_ray_job, in_torchrun
from cluster.tracking.uri import checked_tracking_uri, default_tracking_uri
from common.redaction import redacted, redacted_values
from data_pipeline.paths import resolve_path
from data_pipeline.storage.manifest import Manifest
from data_pipeline.storage.shards import read_manifest, reading_options
from models.networks.table import build_model
from trainer.config.config import Config, Launcher, name_digest, semantics, to_dict

STORAGE_NAMES = ("mlflow.db", "mlartifacts", "evaluators", "evaluation-requests", "reference-statistics", "reports")
"""What the storage folder holds besides runs: MLflow's files, and those that evaluators share."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A config that was found possible, the data set it names, and where the run lives."""

    config: Config
    manifest: Manifest
    directory: Path

    @property
    def semantics(self) -> dict[str, Any]:
        return semantics(self.config, self.manifest.digest)


def num_parameters(config: Config) -> int:
    """Parameters of the network, counted without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(config.model).parameters())


def summary(config: Config) -> dict[str, Any]:
    """What --dry-run prints, without passwords. The data set need not exist yet: then `dataset` says how to make it."""
    config = _absolute(config)
    dataset: dict[str, Any] = {"path": redacted(config.data.path), "found": False}
    try:
        manifest = _read_manifest(config)
    except (FileNotFoundError, NotADirectoryError) as error:
        dataset["problem"] = str(error)
    else:
        _check_data(config, manifest)
        dataset |= {"found": True, "num_images": manifest.num_samples, "digest": manifest.digest}
    return {
        "config": redacted_values(to_dict(config)),
        "num_parameters": num_parameters(config),
        "num_steps": config.train.num_steps,
        "global_batch_size": config.train.global_batch_size,
        "dataset": dataset,
    }


def follow_data(config: Config, given: frozenset[str]) -> Config:
    """`config` with the data set's image size and channels, where the user has not set them (`given`: section.field).

    As it is if the data set cannot be found, which `plan` says. Raises ValueError if the network cannot have that size.
    """
    try:
        manifest = _read_manifest(_absolute(config))
    except (FileNotFoundError, NotADirectoryError):
        return config
    found = {"image_size": manifest.image_size, "image_channels": manifest.image_channels}
    follows: dict[str, Any] = {name: value for name, value in found.items() if f"model.{name}" not in given}
    try:
        return replace(config, model=replace(config.model, **follows))
    except ValueError as error:
        size = f"{manifest.image_size} px, {manifest.image_channels} channels"
        raise ValueError(f"the network cannot take the images in {config.data.path} ({size}): {error}") from None


def plan(config: Config, preset: str, launcher: Launcher = "ray") -> Plan:
    """Check `config` against the machine and the data. Raises ValueError or FileNotFoundError with one helpful line."""
    requested()
    config = _absolute(config)
    manifest = _read_manifest(config)
    _check_data(config, manifest)
    if config.workers.use_gpu and not _may_have_gpu(launcher):
        _log.warning("no GPU on this machine: the workers use its CPU")
        config = replace(config, workers=replace(config.workers, use_gpu=False))
    if config.workers.use_gpu and launcher == "local":
        _check_gpus(config)
    if config.workers.compile and not config.workers.use_gpu:
        _check_compiler()
    if not config.run.name:
        name = f"{preset}-{name_digest(semantics(config, manifest.digest))[:8]}"
        config = replace(config, run=replace(config.run, name=name))
    if not config.run.tracking_uri:
        uri = default_tracking_uri(Path(config.run.storage))
        config = replace(config, run=replace(config.run, tracking_uri=uri))
    _check_name(config)
    _check_disk(config)
    return Plan(config, manifest, Path(config.run.storage) / config.run.name)


def _read_manifest(config: Config) -> Manifest:
    options = reading_options(asdict(config.data))
    return read_manifest(resolve_path(config.data.path), options["fetch"], options["cache_bytes"])


def _check_data(config: Config, manifest: Manifest) -> None:
    model = config.model
    for name, has in (("image_size", manifest.image_size), ("image_channels", manifest.image_channels)):
        if getattr(model, name) != has:
            raise ValueError(
                f"model.{name} {getattr(model, name)} does not match the shards in {config.data.path}, which have "
                f"{has}: pass --model.{name} {has} or pack the images anew"
            )


def _absolute(config: Config) -> Config:
    """Paths made absolute: workers run in other folders than the command does."""
    storage, uri = _absolute_path(config.run.storage, "run.storage"), config.run.tracking_uri
    if uri:
        uri = checked_tracking_uri(uri, lambda path: _absolute_path(path, "run.tracking_uri"))
    run = replace(config.run, storage=storage, tracking_uri=uri)
    path = config.data.path
    if not path.startswith("demo:") and "://" not in path:
        path = _absolute_path(path, "data.path")
    return replace(config, run=run, data=replace(config.data, path=path))


def _absolute_path(path: str, name: str) -> str:
    expanded = os.path.expanduser(path)
    if not os.path.isabs(expanded) and in_ray_job():
        raise ValueError(
            f"{name} {path!r} is relative, but a Ray job runs in a temporary copy of the code: give an absolute path"
        )
    return os.path.abspath(expanded)


def _check_name(config: Config) -> None:
    """The storage folder holds more than runs."""
    if config.run.name.lower() in STORAGE_NAMES or config.run.name.lower().startswith("mlflow.db"):
        raise ValueError(
            f"run.name {config.run.name!r} is taken: {config.run.storage} has a file or folder of that name for all of "
            f"its runs ({', '.join(STORAGE_NAMES)}); give the run another name"
        )


def _check_disk(config: Config) -> None:
    """The storage can be written and has room for a checkpoint: weights, their average and two moments, float32."""
    needed = 4 * 4 * num_parameters(config)
    folder = Path(config.run.storage)
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"run.storage {config.run.storage} cannot be made, as {folder} is not writable: give another "
            "folder, such as --run.storage runs"
        )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"run.storage {config.run.storage} has {free / 2**20:.0f} MiB free, a checkpoint takes "
            f"{needed / 2**20:.0f} MiB: free some, or give another folder"
        )


def _check_compiler() -> None:
    """torch.compile writes C++ for the CPU."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"workers.compile true needs the compiler {compiler}, which is not on the PATH: install it, name another "
            "in CXX, or do not compile"
        )


def _may_have_gpu(launcher: Launcher) -> bool:
    """Whether the workers can be given GPUs: a cluster's machines are not this one, and Ray knows what they have."""
    return on_other_machines(launcher) or torch.cuda.is_available()


def on_other_machines(launcher: Launcher) -> bool:
    """Whether workers may run on a cluster's machines, of which this one knows nothing."""
    return launcher == "ray" and (in_ray_job() or "RAY_ADDRESS" in os.environ)


def _check_gpus(config: Config) -> None:
    """Each worker on this machine has a GPU of its own; torchrun may have others on other machines."""
    num_workers = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if in_torchrun() else config.workers.num_workers
    num_gpus = torch.cuda.device_count()
    if num_workers > num_gpus:
        raise ValueError(
            f"workers.num_workers {config.workers.num_workers} with --launcher local puts {num_workers} on this "
            f"machine, which has {num_gpus} GPU(s), one for each worker: use fewer, or workers.use_gpu false"
        )
