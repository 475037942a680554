"""benchmarks/soak.py: a short one, and that its comparison finds what it looks for."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from benchmarks.soak import soak
from benchmarks.soak_check import differences
from cluster.storage import complete_directories
from cluster.tracking.uploader import default_tracking_uri
from tests.support.failures.faults import TINY, run

pytestmark = pytest.mark.heavy


def train(data: Path, storage: Path, *arguments: str) -> None:
    ended = run(storage / "logs", *TINY, "--data.path", str(data), "--run.storage", str(storage), *arguments)
    assert ended.code == 0, ended.output


def test_the_comparison_names_a_lost_evaluation_a_point_too_many_and_other_losses(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path, "--run.name", "same", "--run.experiment", "same")
    train(data, tmp_path, "--run.name", "other", "--run.experiment", "other", "--train.seed", "1")
    uri, same = default_tracking_uri(tmp_path), tmp_path / "same"
    missing = [f"evaluations: {path.name} has 0 results" for path in complete_directories(same / "checkpoints")]
    assert differences(same, same, data, 8, uri) == missing
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("same")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    client.log_metric(tracked.info.run_id, "train/loss", 1.0, timestamp=1, step=3)
    found = differences(same, tmp_path / "other", data, 8, uri)
    assert found[0] == "losses: 8 of 8 differ from the unbroken run's, the first at step [1]"
    assert found[1:4] == [
        f"{name}.safetensors: other bits than the unbroken run's" for name in ("model", "ema", "optimizer")
    ]
    assert found[4:] == [*missing, "MLflow: train/loss has 9 points, the spool 8, and they are not the same"]
    assert differences(same, same, data, 9, uri)[0] == "losses: 8 steps are in the spool, 9 were trained"


@pytest.mark.slow
def test_a_run_whose_processes_are_killed_again_and_again_is_the_run_it_would_have_been(tmp_path: Path) -> None:
    figures = soak(tmp_path, 1.5, seed=1, launcher="local", pauses=(15.0, 25.0))
    assert figures["differences"] == []
    assert sum(figures["killed"].values()) >= 3
    assert figures["steps"] > 50
