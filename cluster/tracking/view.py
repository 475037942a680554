"""Where a run is seen in MLflow: pages that show trainings; MLflow opens with those for language models."""

import json
import shlex
from pathlib import Path

from cluster.run_directory import RUN, SPOOL
from common.files import read_json
from common.redaction import HIDDEN, redacted

UI_ADDRESS = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens, unless told otherwise."""
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.sharedViewState.loss-and-distance": json.dumps({"chartsSearchFilter": "^(train/loss|eval/[^/]+)$"}),
}
"""What the pages read of an experiment: that it is one of trainings, and a view of it that is named in links."""
_TRAINING_MODE = "workflowType=machine_learning"
_COMPARED = "compareRunsMode=CHART&viewStateShareKey=loss-and-distance"


def where_to_look(run_directory: Path, program: str = "mlflow") -> list[str]:
    """What to run, if anything, and what to open to see a run: its page, and loss and distance of all runs beside it.

    program: how MLflow's command is called where the text is read. The links are there once MLflow has the run.
    """
    uri = redacted(read_json(run_directory / RUN)["tracking_uri"])
    if uri.startswith("databricks"):
        return [uri]
    if uri.startswith(("http://", "https://")):
        address = uri.replace(f"{HIDDEN}@", "").rstrip("/")
        return _links(run_directory, address) or [address]
    return [shlex.join([program, "ui", "--backend-store-uri", uri]), *_links(run_directory, UI_ADDRESS)]


def _links(run_directory: Path, address: str) -> list[str]:
    """The run's page, then loss and distance of all runs of its experiment; none while MLflow lacks the run."""
    try:
        run, sent = read_json(run_directory / RUN), read_json(run_directory / SPOOL / "mlflow.json")
        here = {"tracking_uri": redacted(run["tracking_uri"]), "experiment": run["experiment"]}
        if not {**here, **sent}.items() >= here.items():
            return []  # it was sent elsewhere
        runs = f"{address}/#/experiments/{sent['experiment_id']}/runs"
        return [f"{runs}/{sent['run_id']}?{_TRAINING_MODE}", f"{runs}?{_TRAINING_MODE}&{_COMPARED}"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
