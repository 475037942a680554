"""What is found wrong before a worker starts, and how runs are opened."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.files import read_json, write_json_atomic
from tests.support.trainer import command, digits, tiny_config
from trainer.command import main
from trainer.config.plan import plan
from trainer.run import open_run, run_lease


def test_a_disk_without_room_for_a_checkpoint_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = digits(tmp_path / "data")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 2**20))
    assert main(["--data.path", str(data), "--run.storage", str(tmp_path / "runs" / "of" / "mine")]) == 2
    assert "has 3 MiB free, a checkpoint takes 11 MiB" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_command_itself_shows_no_traceback() -> None:
    finished = command("--preset", "nope")
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""


def test_dry_run_prints_one_json_object_and_writes_nothing(tmp_path: Path) -> None:
    data = digits(tmp_path / "data")
    storage = tmp_path / "runs"
    finished = command("--preset", "demo", "--data.path", str(data), "--run.storage", str(storage), "--dry-run")
    shown = json.loads(finished.stdout)
    assert shown["dataset"]["found"]
    assert shown["dataset"]["num_images"] == 40
    assert {"config", "num_parameters", "num_steps", "global_batch_size", "dataset"} <= shown.keys()
    assert not storage.exists()


def test_a_relative_path_in_a_ray_job_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["--run.storage", "runs"]) == 2
    assert "give an absolute path" in capsys.readouterr().err


def test_a_relative_mlflow_database_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--run.tracking_uri", "sqlite:///mlflow.db", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["run"]["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("password", ["secret", "/secret/", "it's secret", "%73ecret@", "a?secret#"])
def test_a_password_of_mlflow_is_kept_for_the_uploader_alone(
    tmp_path: Path, password: str, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"postgresql://me:{password}@host:5000"
    assert main(["--run.tracking_uri", uri, "--data.path", f"https://host/{tmp_path}?sig=secret", "--dry-run"]) in (
        0,
        2,
    )
    shown = capsys.readouterr()
    assert "ecret" not in shown.out + shown.err
    config = tiny_config(digits(tmp_path / "data"), tmp_path, "run", run={"tracking_uri": uri})
    planned = plan(config, "tiny")
    with run_lease(planned.directory) as lease:
        open_run(planned, lease)
    assert read_json(planned.directory / "run.json")["tracking_uri"] == uri
    said = (planned.directory / "spool" / "run.jsonl").read_text()
    assert '"run.tracking_uri": "postgresql://***@host:5000"' in said
    assert "ecret" not in said


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "3",
        "null",
        "[[[",
        '{"uid": 3, "num_attempts": "x", "created_unix_seconds": [], "config": [], "semantics": 1}',
        '{"uid": "u", "num_attempts": 1, "config": {}, "semantics": 1, "forced_changes": 3}',
    ],
)
def test_a_run_json_that_is_not_that_of_a_run_is_one_line(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, directory = digits(tmp_path / "data"), tmp_path / "runs" / "run"
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(content)
    (directory / "FINISHED.json").write_text(content)
    code = main(["--data.path", str(data), "--run.storage", str(directory.parent), "--run.name", "run"])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"error: {directory / 'run.json'} is not ")
    assert error.count("\n") == 1
    assert (directory / "run.json").read_text() == content


def test_a_copied_run_that_is_trained_on_gets_an_mlflow_run_of_its_own(tmp_path: Path) -> None:
    data = digits(tmp_path / "data")
    first = plan(tiny_config(data, tmp_path, "run"), "tiny")
    with run_lease(first.directory) as lease:
        open_run(first, lease)
    write_json_atomic(first.directory / "spool" / "mlflow.json", {"run_id": "r", "experiment_id": "1"})
    shutil.copytree(first.directory, tmp_path / "copy")
    uids = []
    for name in ("copy", "copy", "run"):
        planned = plan(tiny_config(data, tmp_path, name), "tiny")
        with run_lease(planned.directory) as lease:
            open_run(planned, lease)
        uids.append(read_json(planned.directory / "run.json")["uid"])
    copy, again, original = uids
    assert copy == again != original
    assert not (tmp_path / "copy" / "spool" / "mlflow.json").exists()
    assert (first.directory / "spool" / "mlflow.json").exists()


GPU_WORKERS = {"num_workers": 2, "use_gpu": True}


def test_local_workers_use_this_machine_whatever_cluster_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    config = tiny_config(digits(tmp_path / "data"), tmp_path, "run", workers=GPU_WORKERS)
    assert plan(config, "tiny", "ray").config.workers.use_gpu
    assert not plan(config, "tiny", "local").config.workers.use_gpu


def test_more_local_workers_than_gpus_are_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = tiny_config(digits(tmp_path / "data"), tmp_path, "run", workers=GPU_WORKERS)
    with pytest.raises(ValueError, match=r"workers.num_workers 2 .* which has 1 GPU"):
        plan(config, "tiny", "local")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert plan(config, "tiny", "local").config.workers.use_gpu  # torchrun: the other is on another machine
