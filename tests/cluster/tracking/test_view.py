"""What MLflow's pages read of a run, in a real store: kind, data set, names of artifacts, and links that lead there."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.tracking.spool import Spool, read_events
from cluster.tracking.uploader import Uploader
from cluster.tracking.uri import default_tracking_uri
from cluster.tracking.view import EXPERIMENT_TAGS, where_to_look
from common.files import read_json, write_json_atomic
from tests.support.tracking import describe

DIGEST = "6e8a5c60c73c478e" * 4


def sent(run_directory: Path) -> tuple[MlflowClient, str, str]:
    """(client, experiment id, run id) after everything was sent."""
    Uploader(run_directory).drain()
    marker = read_json(run_directory / "spool" / "mlflow.json")
    return MlflowClient(default_tracking_uri(run_directory.parent)), marker["experiment_id"], marker["run_id"]


def test_the_data_set_of_a_run_is_one_of_its_inputs_however_often_it_is_sent(run_directory: Path) -> None:
    for _ in range(2):  # a run that was resumed
        Spool(run_directory, "run").dataset("digits", DIGEST, "/data/digits", num_images=1797)
    client, _, run_id = sent(run_directory)
    inputs = client.get_run(run_id).inputs
    assert inputs is not None
    (given,) = inputs.dataset_inputs
    assert given.dataset.name == "digits"
    assert DIGEST.startswith(given.dataset.digest)
    profile = json.loads(given.dataset.profile or "")
    assert (profile["digest"], profile["num_images"]) == (DIGEST, "1797")
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_an_artifact_may_have_another_name_than_its_file(run_directory: Path) -> None:
    (run_directory / "0123abcd.grid.png").write_bytes(b"a picture")
    Spool(run_directory, "eval").artifact(run_directory / "0123abcd.grid.png", "samples/fd", "step-00000100.png")
    client, _, run_id = sent(run_directory)
    assert [found.path for found in client.list_artifacts(run_id, "samples/fd")] == ["samples/fd/step-00000100.png"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b"])
def test_an_artifact_of_a_name_that_leads_elsewhere_is_not_sent(run_directory: Path, name: str) -> None:
    (run_directory / "file").write_bytes(b"")
    Spool(run_directory, "eval").artifact(run_directory / "file", "samples", name)
    [(event, _)] = read_events(run_directory / "spool" / "eval.jsonl")
    assert event == {"type": "unreadable"}


def test_an_experiment_is_one_of_trainings_and_keeps_what_a_person_chose(run_directory: Path) -> None:
    spool = Spool(run_directory, "train")
    spool.metrics({"train/loss": 0.5}, 10)
    client, experiment_id, _ = sent(run_directory)
    assert EXPERIMENT_TAGS.items() <= client.get_experiment(experiment_id).tags.items()
    client.set_experiment_tag(experiment_id, "mlflow.experimentKind", "forecasting")
    spool.metrics({"train/loss": 0.4}, 20)
    sent(run_directory)
    assert client.get_experiment(experiment_id).tags["mlflow.experimentKind"] == "forecasting"


def test_an_experiment_of_an_earlier_version_gets_what_it_lacks(run_directory: Path) -> None:
    client = MlflowClient(default_tracking_uri(run_directory.parent))
    client.create_experiment("tests")
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    _, experiment_id, _ = sent(run_directory)
    assert EXPERIMENT_TAGS.items() <= client.get_experiment(experiment_id).tags.items()


def test_links_lead_to_the_run_in_training_mode_once_it_is_there(run_directory: Path) -> None:
    uri = default_tracking_uri(run_directory.parent)
    command = f"mlflow ui --backend-store-uri {uri}"
    assert where_to_look(run_directory) == [command]
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    _, experiment_id, run_id = sent(run_directory)
    runs = f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs"
    said, one, all_of_them = where_to_look(run_directory)
    assert said == command
    assert one == f"{runs}/{run_id}?workflowType=machine_learning"
    assert all_of_them.startswith(f"{runs}?workflowType=machine_learning&compareRunsMode=CHART")


def test_links_of_a_server_lead_to_the_server_and_hold_no_password(run_directory: Path) -> None:
    describe(run_directory, "https://me:secret@host/mlflow/")
    assert where_to_look(run_directory) == ["https://host/mlflow"]
    place = {"tracking_uri": "https://***@host/mlflow/", "experiment": "tests", "run_id": "r", "experiment_id": "7"}
    (run_directory / "spool").mkdir()
    write_json_atomic(run_directory / "spool" / "mlflow.json", place)
    assert where_to_look(run_directory)[0] == "https://host/mlflow/#/experiments/7/runs/r?workflowType=machine_learning"
    describe(run_directory, "http://another")
    assert where_to_look(run_directory) == ["http://another"]
