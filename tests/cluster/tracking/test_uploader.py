import math
import shutil
import socket
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.commands import main
from cluster.tracking.background import BackgroundUploader
from cluster.tracking.spool import Spool, read_metrics
from cluster.tracking.uploader import Uploader, UploadError, default_tracking_uri
from common.files import read_json, write_json_atomic
from tests.support.tracking import describe


def blocked_uri(folder: Path) -> str:
    """A database that cannot be opened."""
    (folder / "not-a-folder").write_text("")
    return f"sqlite:///{folder}/not-a-folder/mlflow.db"


def sent_steps(uri: str, experiment: str = "tests") -> list[int]:
    """Steps of train/loss in the only living run of the experiment."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    return [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]


def mlflow_run(directory: Path) -> tuple[MlflowClient, str]:
    client = MlflowClient(default_tracking_uri(directory.parent))
    return client, read_json(directory / "spool" / "mlflow.json")["run_id"]


def test_every_point_arrives_once_with_its_step_and_time(run_directory: Path) -> None:
    spool = Spool(run_directory, "train")
    for step in (10, 20, 30):
        spool.metrics({"train/loss": 1 / step, "train/grad_norm": step}, step)
    spool.params({"optim.learning_rate": 2e-4})
    spool.tags({"world_size": 2})
    uploader = Uploader(run_directory)
    assert uploader.pending()
    assert uploader.drain() == 5
    assert uploader.drain() == 0
    assert not uploader.pending()
    client, run_id = mlflow_run(run_directory)
    sent = client.get_metric_history(run_id, "train/loss")
    written = read_metrics(run_directory)["train/loss"]
    assert [(m.step, m.value, m.timestamp) for m in sent] == [(s, v, int(t * 1000)) for s, v, t in written]
    data = client.get_run(run_id).data
    assert data.params == {"optim.learning_rate": "0.0002"}
    assert data.tags["world_size"] == "2"


def test_a_resumed_writer_does_not_write_a_step_twice(run_directory: Path) -> None:
    first = Spool(run_directory, "train")
    first.metrics({"train/loss": 0.5}, 10)
    first.metrics({"train/loss": 0.4}, 20)
    resumed = Spool(run_directory, "train")
    resumed.metrics({"train/loss": 0.4}, 20)
    resumed.metrics({"train/loss": 0.3}, 30)
    assert [(step, value) for step, value, _ in read_metrics(run_directory)["train/loss"]] == [
        (10, 0.5),
        (20, 0.4),
        (30, 0.3),
    ]
    assert Uploader(run_directory).drain() == 3


def test_a_line_torn_by_a_crash_is_cut_off(run_directory: Path) -> None:
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    path = run_directory / "spool" / "train.jsonl"
    with open(path, "a") as file:
        file.write('{"type": "metrics", "step": 20, "val')
    assert Uploader(run_directory).drain() == 1
    Spool(run_directory, "train").metrics({"train/loss": 0.4}, 20)
    assert Uploader(run_directory).drain() == 1
    assert [p[0] for p in read_metrics(run_directory)["train/loss"]] == [10, 20]


def test_what_an_outage_keeps_back_arrives_later(run_directory: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{probe.getsockname()[1]}"
    describe(run_directory, away)
    spool = Spool(run_directory, "train")
    spool.metrics({"train/loss": 0.5}, 10)
    with BackgroundUploader(run_directory, every_seconds=0.1):
        spool.metrics({"train/loss": 0.4}, 20)
    assert Uploader(run_directory).pending()
    describe(run_directory, default_tracking_uri(run_directory.parent))
    assert Uploader(run_directory).drain() == 2
    client, run_id = mlflow_run(run_directory)
    assert [m.step for m in client.get_metric_history(run_id, "train/loss")] == [10, 20]


def test_trainer_and_evaluator_share_one_mlflow_run(run_directory: Path) -> None:
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    Uploader(run_directory).drain()
    (run_directory / "spool" / "mlflow.json").unlink()  # as on another machine, before it was written there
    Spool(run_directory, "eval").metrics({"eval/fd": 3.0}, 10)
    Uploader(run_directory).drain()
    client, run_id = mlflow_run(run_directory)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert client.get_run(run_id).data.metrics == {"train/loss": 0.5, "eval/fd": 3.0}


def test_a_changed_param_becomes_a_tag(run_directory: Path) -> None:
    spool = Spool(run_directory, "run")
    spool.params({"workers.num_workers": 2})
    Uploader(run_directory).drain()
    spool.params({"workers.num_workers": 1})
    Uploader(run_directory).drain()
    client, run_id = mlflow_run(run_directory)
    data = client.get_run(run_id).data
    assert data.params["workers.num_workers"] == "2"
    assert data.tags["changed.workers.num_workers"] == "1"


def test_status_and_artifacts_reach_mlflow(run_directory: Path) -> None:
    (run_directory / "grid.txt").write_text("grid")
    spool = Spool(run_directory, "run")
    spool.artifact(run_directory / "grid.txt", "samples")
    spool.status("FINISHED")
    Uploader(run_directory).drain()
    client, run_id = mlflow_run(run_directory)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [a.path for a in client.list_artifacts(run_id, "samples")] == ["samples/grid.txt"]


def test_a_loss_that_is_not_a_number_is_kept(run_directory: Path) -> None:
    Spool(run_directory, "train").metrics({"train/loss": math.nan}, 10)
    assert math.isnan(read_metrics(run_directory)["train/loss"][0][1])
    assert Uploader(run_directory).drain() == 1


@pytest.mark.parametrize("changed", ["uri", "experiment"])
def test_a_run_that_is_sent_elsewhere_is_sent_there_from_its_start(
    run_directory: Path, tmp_path: Path, changed: str
) -> None:
    uri = default_tracking_uri(run_directory.parent)
    spool = Spool(run_directory, "train")
    spool.metrics({"train/loss": 0.5}, 10)
    Uploader(run_directory).drain()
    new = (default_tracking_uri(tmp_path), "tests") if changed == "uri" else (uri, "others")
    describe(run_directory, *new)
    assert Uploader(run_directory).pending()
    spool.metrics({"train/loss": 0.4}, 20)
    assert Uploader(run_directory).drain() == 2
    assert Uploader(run_directory).drain() == 0
    assert sent_steps(*new) == [10, 20]
    assert sent_steps(uri) == [10]


@pytest.mark.parametrize("gone", ["deleted", "unknown"])
def test_a_run_that_mlflow_lost_is_made_again_with_all_its_points(run_directory: Path, gone: str) -> None:
    spool = Spool(run_directory, "train")
    spool.metrics({"train/loss": 0.5}, 10)
    uploader = Uploader(run_directory)
    uploader.drain()
    client, run_id = mlflow_run(run_directory)
    client.delete_run(run_id)
    if gone == "unknown":
        write_json_atomic(run_directory / "spool" / "mlflow.json", {"run_id": "f" * 32, "experiment_id": "1"})
    spool.metrics({"train/loss": 0.4}, 20)
    with pytest.raises(UploadError):  # it is connected to the run, and finds out
        uploader.drain()
    assert uploader.drain() == 2
    assert sent_steps(default_tracking_uri(run_directory.parent)) == [10, 20]


def test_a_marker_from_before_places_were_kept_is_believed(run_directory: Path) -> None:
    spool = Spool(run_directory, "train")
    spool.metrics({"train/loss": 0.5}, 10)
    Uploader(run_directory).drain()
    marker = run_directory / "spool" / "mlflow.json"
    kept = read_json(marker)
    write_json_atomic(marker, {name: kept[name] for name in ("run_id", "experiment_id")})
    spool.metrics({"train/loss": 0.4}, 20)
    assert Uploader(run_directory).drain() == 1
    assert read_json(marker) == kept


def test_uploading_to_an_mlflow_that_is_away_is_one_line(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    describe(run_directory, blocked_uri(tmp_path))
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    assert main(["upload", str(run_directory)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if not line.startswith("error: MLflow did not take all of")] == []
    assert len(said) == 1


def test_a_deleted_experiment_is_restored_and_the_log_says_so(
    run_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(run_directory, "train")
    spool.metrics({"train/loss": 0.5}, 10)
    uploader = Uploader(run_directory)
    uploader.drain()
    client, _ = mlflow_run(run_directory)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    spool.metrics({"train/loss": 0.4}, 20)
    with pytest.raises(UploadError):  # it is connected to the run, and finds out
        uploader.drain()
    assert uploader.drain() == 1
    assert "MLflow's experiment 'tests' was deleted; restored" in caplog.text
    assert sent_steps(default_tracking_uri(run_directory.parent)) == [10, 20]


@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_copy_of_a_run_is_sent_to_an_mlflow_run_of_its_own(run_directory: Path, earlier_version: bool) -> None:
    """One that was sent before it was copied, and remembers the original's MLflow run."""
    uri = default_tracking_uri(run_directory.parent)
    spool = Spool(run_directory, "run")
    spool.tags({"run_directory": run_directory})
    if not earlier_version:
        write_json_atomic(
            run_directory / "run.json", read_json(run_directory / "run.json") | {"directory": str(run_directory)}
        )
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    Uploader(run_directory).drain()
    marker = run_directory / "spool" / "mlflow.json"
    if earlier_version:
        write_json_atomic(marker, {name: value for name, value in read_json(marker).items() if name != "uid"})
    copy = run_directory.with_name("copy")
    shutil.copytree(run_directory, copy)
    Spool(copy, "train").metrics({"train/loss": 0.3}, 30)
    assert Uploader(copy).pending()
    assert Uploader(copy).drain() == 3
    Spool(run_directory, "train").metrics({"train/loss": 0.4}, 20)
    assert Uploader(run_directory).drain() == 1
    client = MlflowClient(uri)
    steps = {
        directory.name: [
            point.step
            for point in client.get_metric_history(
                read_json(directory / "spool" / "mlflow.json")["run_id"], "train/loss"
            )
        ]
        for directory in (run_directory, copy)
    }
    assert steps == {"some-run": [10, 20], "copy": [10, 30]}


def test_a_run_that_was_moved_stays_the_run_it_was(run_directory: Path) -> None:
    write_json_atomic(
        run_directory / "run.json", read_json(run_directory / "run.json") | {"directory": str(run_directory)}
    )
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    Uploader(run_directory).drain()
    link, moved = run_directory.with_name("link"), run_directory.with_name("moved")
    link.symlink_to(run_directory)
    Spool(link, "train").metrics({"train/loss": 0.4}, 20)
    assert Uploader(link).drain() == 1
    run_directory.rename(moved)
    Spool(moved, "train").metrics({"train/loss": 0.3}, 30)
    assert Uploader(moved).drain() == 1
    assert sent_steps(default_tracking_uri(moved.parent)) == [10, 20, 30]


@pytest.mark.parametrize("name", ["ü密 a#b;c&d=e@f%zz", "x" * 200])
def test_the_database_and_the_artifacts_lie_in_the_storage_folder_whatever_it_is_called(
    tmp_path: Path, name: str
) -> None:
    storage = tmp_path / name
    directory = storage / "some-run"
    directory.mkdir(parents=True)
    describe(directory, default_tracking_uri(storage))
    (directory / "grid.txt").write_text("grid")
    spool = Spool(directory, "run")
    spool.artifact(directory / "grid.txt")
    assert Uploader(directory).drain() == 1
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert {path.name for path in storage.iterdir()} == {"some-run", "mlflow.db", "mlartifacts"}
    assert len(list((storage / "mlartifacts").rglob("grid.txt"))) == 1
