"""Snapshots by their name in an MLflow model registry: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

The one file of this package that knows MLflow, and only to fetch: it comes as a snapshot on disk (decisions/0001).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.redaction import redacted

if TYPE_CHECKING:
    import torch

    from models.snapshot import Snapshot

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
_URI = re.compile(r"models:/+(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def open_snapshot(place: str | Path, device: str | torch.device = "cpu", tracking_uri: str | None = None) -> Snapshot:
    """The snapshot of a directory, or of a registry URI; its provenance then says which version that was.

    tracking_uri: of the MLflow registry; $MLFLOW_TRACKING_URI if not given. Raises ValueError or FileNotFoundError
    naming what is wrong, and as load_snapshot does.
    """
    from models.snapshot import load_snapshot

    if not str(place).startswith("models:/"):
        return load_snapshot(place, device)
    found = _URI.fullmatch(str(place))
    if found is None:
        raise ValueError(f"{place} is not a name in a model registry: write models:/NAME@ALIAS or models:/NAME/VERSION")
    with tempfile.TemporaryDirectory() as folder:
        version, place = _fetch(found, _tracking_uri(tracking_uri), folder)
        snapshot = load_snapshot(place, device)
    provenance = {**snapshot.provenance, "registered_as": f"models:/{found['name']}/{version}"}
    return dataclasses.replace(snapshot, provenance=provenance)


def _tracking_uri(given: str | None) -> str:
    uri = given or os.environ.get(TRACKING_VARIABLE)
    if not uri:
        raise ValueError(f"models:/ names need an MLflow registry: give --tracking-uri or set {TRACKING_VARIABLE}")
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).is_file():  # MLflow would make an empty one
        raise FileNotFoundError(f"tracking uri {uri}: there is no file {database}; a run's run.json names its own")
    return uri


def _fetch(found: re.Match[str], tracking_uri: str, folder: str) -> tuple[str, str]:
    """Put the registered snapshot's files below a folder; the version's number and where the files lie."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # somebody waits at a prompt
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    client: Any = MlflowClient(tracking_uri, registry_uri=tracking_uri)
    try:
        if found["alias"]:
            version = client.get_model_version_by_alias(found["name"], found["alias"])
        else:
            version = client.get_model_version(found["name"], found["version"])
        place = download_artifacts(artifact_uri=version.source, dst_path=folder, tracking_uri=tracking_uri)
    except MlflowException as error:
        raise ValueError(redacted(f"{found[0]} in the registry of {tracking_uri}: {error.message}")) from error
    return str(version.version), place
