"""What MLflow is told of each event of the spool. Telling it twice is harmless."""

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)
_LONGEST_DIGEST = 36
"""What MLflow's tables hold of a data set's digest; the whole one is in its profile."""


def send_events(client: "MlflowClient", run_id: str, directory: Path, events: Sequence[dict[str, Any]]) -> None:
    """directory: that of the run, in which the files of artifacts lie."""
    _send_metrics(client, run_id, [event for event in events if event["type"] == "metrics"])
    for event in events:
        if event["type"] == "params":
            _send_params(client, run_id, event["values"])
        elif event["type"] == "tags":
            for name, value in event["values"].items():
                client.set_tag(run_id, name, value)
        elif event["type"] == "dataset":
            _send_dataset(client, run_id, event["values"])
        elif event["type"] == "artifact":
            _send_artifact(client, run_id, directory, event)
        elif event["type"] == "status" and event["status"] == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        elif event["type"] == "status":
            client.set_terminated(run_id, event["status"], int(event["time"] * 1000))


def _send_metrics(client: "MlflowClient", run_id: str, events: Sequence[dict[str, Any]]) -> None:
    from mlflow.entities import Metric

    points = [
        Metric(name, value, int(event["time"] * 1000), event["step"])
        for event in events
        for name, value in event["values"].items()
    ]
    for start in range(0, len(points), 1000):  # MLflow's limit of metrics in a batch
        client.log_batch(run_id, metrics=points[start : start + 1000])


def _send_params(client: "MlflowClient", run_id: str, values: dict[str, str]) -> None:
    """MLflow refuses to change a param, so a changed value of a resumed run becomes a tag `changed.<name>`."""
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    fresh = [Param(name, value) for name, value in values.items() if name not in known]
    for start in range(0, len(fresh), 100):  # MLflow's limit of params in a batch
        client.log_batch(run_id, params=fresh[start : start + 100])
    for name, value in values.items():
        if known.get(name, value) != value:
            client.set_tag(run_id, f"changed.{name}", value)


def _send_dataset(client: "MlflowClient", run_id: str, values: dict[str, str]) -> None:
    """As `mlflow.log_input(context="training")`, which needs the data at hand."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=values["name"],
        digest=values["digest"][:_LONGEST_DIGEST],
        source_type="webdataset",
        source=json.dumps({"uri": values["source"]}),
        profile=json.dumps({name: value for name, value in values.items() if name not in ("name", "source")}),
    )
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _send_artifact(client: "MlflowClient", run_id: str, directory: Path, event: dict[str, Any]) -> None:
    path, name = directory / event["path"], event.get("name")
    if not path.exists():
        _log.warning("artifact %s is gone and was not sent to MLflow", path)
    elif name is None:
        client.log_artifact(run_id, str(path), event["folder"] or None)
    else:
        with tempfile.TemporaryDirectory() as folder:  # MLflow takes a file's own name
            client.log_artifact(run_id, shutil.copyfile(path, Path(folder) / name), event["folder"] or None)
