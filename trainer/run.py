"""A run as planned: everything that can be wrong is found here, before a worker is started."""

import importlib.metadata
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cluster.fault import requested
from cluster.launch import in_ray_job
from cluster.lease import Lease, holding
from cluster.process import git_commit
from cluster.spool import Spool
from cluster.storage import complete_directories, read_json, write_json_atomic
from cluster.tracking import default_tracking_uri
from data_pipeline.demo import resolve_path
from data_pipeline.manifest import Manifest
from data_pipeline.shards import read_manifest, reading_options
from eval.results import checkpoint_step
from models.config import ModelConfig, build_model
from trainer.config import Config, digest, flatten, from_dict, semantics, to_dict

LEASE_STALE_SECONDS = 30.0
_log = logging.getLogger(__name__)
_VERSIONED = ("rayddpm", "torch", "ray", "deepspeed", "mlflow", "webdataset", "torch-ema", "numpy")


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
    """What --dry-run prints. The data set need not exist yet: then `dataset` says how to make it."""
    config = _absolute(config)
    dataset: dict[str, Any] = {"path": config.data.path, "found": False}
    try:
        manifest = _read_manifest(config)
    except (FileNotFoundError, NotADirectoryError) as error:
        dataset["problem"] = str(error)
    else:
        _check_data(config, manifest)
        dataset |= {"found": True, "num_images": manifest.num_samples, "digest": manifest.digest}
    return {
        "config": to_dict(config),
        "num_parameters": num_parameters(config),
        "num_steps": config.train.num_steps,
        "global_batch_size": config.train.global_batch_size,
        "dataset": dataset,
    }


def plan(config: Config, preset: str) -> Plan:
    """Check `config` against the machine and the data. Raises ValueError or FileNotFoundError with one helpful line."""
    requested()
    config = _absolute(config)
    manifest = _read_manifest(config)
    _check_data(config, manifest)
    if config.workers.use_gpu and not _may_have_gpu():
        _log.warning("no GPU on this machine: the workers use its CPU")
        config = replace(config, workers=replace(config.workers, use_gpu=False))
    if config.workers.compile and not config.workers.use_gpu:
        _check_compiler()
    if not config.run.name:
        name = f"{preset}-{digest(semantics(config, manifest.digest))[:8]}"
        config = replace(config, run=replace(config.run, name=name))
    if not config.run.tracking_uri:
        uri = default_tracking_uri(Path(config.run.storage))
        config = replace(config, run=replace(config.run, tracking_uri=uri))
    _check_disk(config)
    return Plan(config, manifest, Path(config.run.storage) / config.run.name)


@contextmanager
def run_lease(directory: Path) -> Iterator[Lease]:
    """The right to train the run in `directory`, for this process alone. Raises ValueError while another has it."""
    path = directory / "lease.json"
    with holding(path, LEASE_STALE_SECONDS) as lease:
        if lease is None:
            raise ValueError(f"{directory} is being trained by another process, see {path}: wait for it, or stop it")
        yield lease


def open_run(plan: Plan, lease: Lease, force_changes: bool = False) -> bool:
    """Create the run directory, or reopen it if it holds the same run. True if there is something left to train.

    lease: held by the caller. Raises ValueError with a diff if the directory holds a run of other semantics, unless
    force_changes: then the diff goes into run.json, into every checkpoint from now on, and to MLflow.
    """
    path = plan.directory / "run.json"
    previous = read_json(path) if path.exists() else None
    forced_changes = previous.get("forced_changes", []) if previous else []
    if previous is not None and (changed := _changes(plan, previous["semantics"])):
        if not force_changes:
            raise ValueError(
                f"{plan.directory} holds another run ({'; '.join(changed)}): give this one another --run.name, or the "
                "values it had (--force-changes trains on regardless, and records it)"
            )
        _refuse_misfits(plan, from_dict(previous["config"]))
        forced_changes.append({"after_step": _newest_step(plan.directory), "changes": changed})
        _log.warning("%s goes on with changes: %s", plan.directory, "; ".join(changed))
    plan.directory.mkdir(parents=True, exist_ok=True)
    config = plan.config
    run = {
        "run": config.run.name,
        "lease_token": lease.token,
        "uid": previous["uid"] if previous else uuid.uuid4().hex,
        "num_attempts": previous["num_attempts"] + 1 if previous else 1,
        "created_unix_seconds": previous["created_unix_seconds"] if previous else time.time(),
        "config": to_dict(config),
        "semantics": plan.semantics,
        "config_digest": digest(plan.semantics),
        "manifest_digest": plan.manifest.digest,
        "num_parameters": num_parameters(config),
        "num_steps": config.train.num_steps,
        "tracking_uri": config.run.tracking_uri,
        "experiment": config.run.experiment,
        "git_commit": git_commit(),
        "faults": requested(),
        "forced_changes": forced_changes,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONED},
    }
    if is_finished(plan):
        return False
    (plan.directory / "FINISHED.json").unlink(missing_ok=True)
    write_json_atomic(path, run)
    _announce(plan, run)
    return True


def is_finished(plan: Plan) -> bool:
    """Whether the run has reached the number of steps that is asked for."""
    path = plan.directory / "FINISHED.json"
    return path.exists() and bool(read_json(path)["step"] >= plan.config.train.num_steps)


def close_run(plan: Plan, status: str) -> None:
    """status: FINISHED, FAILED or KILLED, as MLflow names them."""
    if status == "FINISHED":
        write_json_atomic(plan.directory / "FINISHED.json", {"step": plan.config.train.num_steps})
    spool = Spool(plan.directory, "run")
    spool.status(status)
    spool.close()


def _announce(plan: Plan, run: dict[str, Any]) -> None:
    """Params and tags of the run, for MLflow."""
    spool = Spool(plan.directory, "run")
    spool.params(flatten(plan.config) | {"num_parameters": run["num_parameters"]})
    spool.tags(
        {
            "git_commit": run["git_commit"],
            "manifest_digest": run["manifest_digest"],
            "config_digest": run["config_digest"],
            "num_attempts": run["num_attempts"],
            "world_size": plan.config.workers.num_workers,
            "strategy": plan.config.workers.strategy,
            "run_directory": plan.directory,
            **({"forced_changes": json.dumps(run["forced_changes"])} if run["forced_changes"] else {}),
        }
    )
    spool.status("RUNNING")
    spool.close()


def _changes(plan: Plan, previous: dict[str, Any]) -> list[str]:
    now = plan.semantics
    return [
        f"{name} was {previous.get(name)!r}, is {now.get(name)!r}"
        for name in sorted(now.keys() | previous.keys())
        if previous.get(name) != now.get(name)
    ]


def _refuse_misfits(plan: Plan, previous: Config) -> None:
    """Changes that cannot be forced, because the checkpoints of the run would not fit."""
    if plan.config.ema.decay != previous.ema.decay:
        raise ValueError(
            f"ema.decay {plan.config.ema.decay} cannot be forced on {plan.directory}: its averages were made with "
            f"{previous.ema.decay}; give this one another --run.name"
        )
    if _shapes(plan.config.model) != _shapes(previous.model):
        raise ValueError(
            f"these model.* values cannot be forced on {plan.directory}: its weights have other names or shapes; "
            "give this one another --run.name"
        )


def _shapes(model: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in build_model(model).named_parameters()}


def _newest_step(directory: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    checkpoints = complete_directories(directory / "checkpoints")
    return checkpoint_step(checkpoints[-1].name) if checkpoints else 0


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
    run = replace(config.run, storage=_absolute_path(config.run.storage, "run.storage"))
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


def _check_disk(config: Config) -> None:
    """The storage has room for a checkpoint: the weights, their average and two moments, float32."""
    needed = 4 * 4 * num_parameters(config)
    folder = Path(config.run.storage)
    while not folder.exists():
        folder = folder.parent
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


def _may_have_gpu() -> bool:
    """Whether the workers can be given GPUs: a cluster's machines are not this one, and Ray knows what they have."""
    return in_ray_job() or "RAY_ADDRESS" in os.environ or torch.cuda.is_available()
