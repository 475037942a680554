"""A run directory from one attempt to the next: opened by the one process that holds its lease, and closed."""

import json
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cluster.fault import requested
from cluster.lease import Lease, holding
from cluster.run_directory import FINISHED, LEASE, RUN, SPOOL, newest_step
from cluster.tracking.copies import own_uid
from cluster.tracking.spool import Spool
from common.code import git_commit, installed_versions
from common.files import read_json, write_json_atomic
from common.redaction import redacted_values
from models.config import ModelConfig
from models.networks.table import build_model
from trainer.config.config import DROPOUT_MASKS, Config, digest, flatten, from_dict, to_dict
from trainer.config.description import dataset_for_mlflow, tags_for_mlflow
from trainer.config.plan import Plan, num_parameters

LEASE_STALE_SECONDS = 30.0
_log = logging.getLogger(__name__)
_VERSIONED = ("rayddpm", "torch", "ray", "deepspeed", "mlflow", "webdataset", "torch-ema", "numpy")


@contextmanager
def run_lease(directory: Path) -> Iterator[Lease]:
    """The right to train the run in `directory`, for this process alone. Raises ValueError while another has it."""
    path = directory / LEASE
    with holding(path, LEASE_STALE_SECONDS) as lease:
        if lease is None:
            raise ValueError(f"{directory} is being trained by another process, see {path}: wait for it, or stop it")
        yield lease


def open_run(plan: Plan, lease: Lease, force_changes: bool = False) -> bool:
    """Create the run directory, or reopen it if it holds the same run. True if there is something left to train.

    lease: held by the caller. Raises ValueError with a diff if the directory holds a run of other semantics, unless
    force_changes: then the diff goes into run.json, into every checkpoint from now on, and to MLflow.
    """
    path = plan.directory / RUN
    previous = _read_previous(path) if path.exists() else None
    forced_changes = _forced_changes(plan, previous, force_changes) if previous else []
    plan.directory.mkdir(parents=True, exist_ok=True)
    run = {**_description(plan), **_history(plan, previous), "forced_changes": forced_changes}
    if is_finished(plan):
        return False
    (plan.directory / FINISHED).unlink(missing_ok=True)
    if previous is not None and run["uid"] != previous["uid"]:
        _log.warning("%s is a copy: it gets an MLflow run of its own, with all points of the original", plan.directory)
        (plan.directory / SPOOL / "mlflow.json").unlink(missing_ok=True)  # names the original's
    write_json_atomic(path, run)
    _announce(plan, run)
    return True


def _forced_changes(plan: Plan, previous: dict[str, Any], force_changes: bool) -> list[dict[str, Any]]:
    """What was changed about the run so far, and by this plan. Raises ValueError if it may not be changed."""
    forced_changes = list(previous.get("forced_changes", []))
    if changed := _changes(plan, previous["semantics"]):
        if not force_changes:
            raise ValueError(
                f"{plan.directory} holds another run ({'; '.join(changed)}): give this one another --run.name, or the "
                "values it had (--force-changes trains on regardless, and records it)"
            )
        _refuse_misfits(plan, from_dict(previous["config"]))
        forced_changes.append({"after_step": newest_step(plan.directory), "changes": changed})
        _log.warning("%s goes on with changes: %s", plan.directory, "; ".join(changed))
    return forced_changes


def _description(plan: Plan) -> dict[str, Any]:
    """What is trained, with what code, and where it is tracked."""
    config = plan.config
    return {
        "run": config.run.name,
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
        "versions": installed_versions(*_VERSIONED),
    }


def _history(plan: Plan, previous: dict[str, Any] | None) -> dict[str, Any]:
    """Which run it is, where it lies, and how often it was started."""
    return {
        "uid": own_uid(plan.directory, previous) if previous else uuid.uuid4().hex,
        "directory": str(plan.directory),
        "num_attempts": previous["num_attempts"] + 1 if previous else 1,
        "created_unix_seconds": previous["created_unix_seconds"] if previous else time.time(),
    }


def is_finished(plan: Plan) -> bool:
    """Whether the run has reached the number of steps that is asked for."""
    path = plan.directory / FINISHED
    finished = read_json(path) if path.exists() else None
    step = finished.get("step") if isinstance(finished, dict) else None
    return isinstance(step, int) and step >= plan.config.train.num_steps


def close_run(plan: Plan, lease: Lease, status: str) -> None:
    """status: FINISHED, FAILED or KILLED, as MLflow names them. Raises LostLeaseError if the run is another's now."""
    lease.check()
    if status == "FINISHED":
        write_json_atomic(plan.directory / FINISHED, {"step": plan.config.train.num_steps})
    spool = Spool(plan.directory, "run")
    spool.status(status)
    spool.close()


def _announce(plan: Plan, run: dict[str, Any]) -> None:
    """Params and tags of the run, for MLflow."""
    spool = Spool(plan.directory, "run")
    spool.params(redacted_values(flatten(plan.config)) | {"num_parameters": run["num_parameters"]})
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
            **tags_for_mlflow(plan, run),
        }
    )
    spool.dataset(**dataset_for_mlflow(plan))
    spool.status("RUNNING")
    spool.close()


def _read_previous(path: Path) -> dict[str, Any]:
    """The run.json that a run left. Raises ValueError if it is not that of a run."""
    previous = read_json(path)
    kinds = {
        "uid": str,
        "num_attempts": int,
        "created_unix_seconds": float | int,
        "config": dict,
        "semantics": dict,
        "forced_changes": list,
    }
    found = {"forced_changes": [], **previous} if isinstance(previous, dict) else {}
    if wrong := [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]:
        raise ValueError(
            f"{path} is not that of a run: {', '.join(wrong)} missing or of another type; restore the file, or give "
            "this run another --run.name"
        )
    return previous


def _changes(plan: Plan, previous: dict[str, Any]) -> list[str]:
    now = plan.semantics
    if previous.get("model.dropout"):
        previous = {DROPOUT_MASKS: "by step and worker", **previous}
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
