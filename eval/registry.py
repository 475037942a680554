"""The MLflow model registry: a run's best checkpoint as a snapshot (safetensors and JSON, no pickle) under an alias."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

from cluster.run_directory import CHECKPOINTS, RUN, SPOOL
from cluster.tracking.uploader import Uploader, UploadError
from common.files import read_json
from common.redaction import redacted
from eval.protocol import parse_protocol
from eval.results import DONE, all_results
from eval.runs import read_run

SNAPSHOT_FILES = ("snapshot.json", "ema.safetensors")
_SENDING_SECONDS = 30.0  # that another process may take to send the spool


def best_result(run_directory: Path, protocol_name: str) -> dict[str, Any]:
    """The run's best number under a protocol. Raises ValueError if there is none, naming what there is."""
    protocol = parse_protocol(protocol_name)
    done = [result for result in all_results(run_directory) if result["status"] == DONE]
    # Not by name alone: it does not say the version of the code that made the number.
    digest = protocol.bind(read_run(run_directory)["manifest_digest"]).digest
    found = [result for result in done if result["protocol"]["digest"] == digest]
    if not found:
        names = ", ".join(sorted({result["protocol"]["name"] for result in done})) or "none"
        raise ValueError(f"{run_directory} has no number under {protocol.name}; there are: {names}")
    best = min if protocol.lower_is_better else max
    return best(found, key=lambda result: result["value"])


def register(run_directory: Path, result: Mapping[str, Any], model_name: str, aliases: Sequence[str]) -> str:
    """Register the snapshot a result was measured on as a new version of `model_name`; its models:/ URI.

    The snapshot becomes an artifact of the run's MLflow run; the version carries number, protocol and data digest as
    tags. Registering the same checkpoint again moves the aliases and adds no version. Raises FileNotFoundError if the
    checkpoint is gone, ValueError if MLflow is away or refuses.
    """
    checkpoint = run_directory / CHECKPOINTS / result["checkpoint"]
    if not (checkpoint / SNAPSHOT_FILES[0]).is_file():
        raise FileNotFoundError(f"{checkpoint} is gone; evaluate a checkpoint that is kept, or raise keep_every_steps")
    from mlflow.exceptions import MlflowException

    try:
        Uploader(run_directory).drain(_SENDING_SECONDS)
        return _register(run_directory, checkpoint, result, model_name, aliases)
    except (MlflowException, UploadError) as error:
        reason = str(error).strip().partition("\n")[0]
        uri = read_json(run_directory / RUN)["tracking_uri"]
        raise ValueError(redacted(f"MLflow at {uri}: {reason}")) from error


def _register(
    run_directory: Path, checkpoint: Path, result: Mapping[str, Any], model_name: str, aliases: Sequence[str]
) -> str:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(read_json(run_directory / RUN)["tracking_uri"])
    run_id = read_json(run_directory / SPOOL / "mlflow.json")["run_id"]
    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = _version_of(client, model_name, result["checkpoint"]) or _add_version(
        client, run_id, model_name, checkpoint, result
    )
    for alias in aliases:
        client.set_registered_model_alias(model_name, alias, version)
    return f"models:/{model_name}/{version}"


def _version_of(client: Any, model_name: str, checkpoint: str) -> str | None:
    for version in client.search_model_versions(f"name = '{model_name}'"):
        if version.tags.get("checkpoint") == checkpoint:
            return version.version
    return None


def _add_version(client: Any, run_id: str, model_name: str, checkpoint: Path, result: Mapping[str, Any]) -> str:
    place = f"snapshots/{checkpoint.name}"
    with tempfile.TemporaryDirectory() as folder:
        for name in SNAPSHOT_FILES:
            copyfile(checkpoint / name, Path(folder) / name)
        client.log_artifacts(run_id, folder, place)
    source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
    tags = {
        "checkpoint": checkpoint.name,
        "step": str(result["step"]),
        "protocol": result["protocol"]["name"],
        "protocol_digest": result["protocol"]["digest"],
        "value": repr(result["value"]),
        "manifest_digest": str(result["protocol"]["reference_digest"]),
    }
    return client.create_model_version(model_name, source, run_id, tags=tags).version
