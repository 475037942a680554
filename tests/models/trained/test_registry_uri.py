"""Snapshots by registry name: a registry in a SQLite file, filled by `eval register`, read by `python -m models`."""

import json
from pathlib import Path

import numpy as np
import pytest

from eval.cli.commands import main as eval_main
from models.cli.commands import main
from models.snapshot import load_snapshot
from models.trained.registry_uri import open_snapshot
from tests.eval.reports.test_report import add_result
from tests.support.evaluation import make_run

STEPS = ("--num-images", "3", "--sampler", "ddim", "--num-sampling-steps", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose checkpoint at step 100 is version 1, called best; step 200 has the worse number."""
    run = make_run(tmp_path_factory.mktemp("registry") / "runs", steps=(100, 200))
    for step, value in ((100, 5.0), (200, 9.0)):
        add_result(run, step, value)
    assert eval_main(["register", str(run), "--protocol", "fd_efficientnet_lite0_512", "--name", "digits"]) == 0
    return run


@pytest.fixture
def registry(run, monkeypatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return json.loads((run / "run.json").read_text())["tracking_uri"]


def images(folder: Path) -> np.ndarray:
    return np.load(folder / "samples.npz")["images"]


def test_the_registered_best_gives_the_checkpoints_own_images(run, registry, tmp_path, monkeypatch):
    [checkpoint] = (run / "checkpoints").glob("step-00000100-*")
    named = ["--tracking-uri", registry]
    assert main(["sample", str(checkpoint), *STEPS, "--output", str(tmp_path / "folder")]) == 0
    assert main(["sample", "models:/digits@best", *STEPS, *named, "--output", str(tmp_path / "alias")]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    assert main(["sample", "models:/digits/1", *STEPS, "--output", str(tmp_path / "version")]) == 0
    expected = images(tmp_path / "folder")
    assert expected.std() > 1
    for place in ("alias", "version"):
        assert np.array_equal(images(tmp_path / place), expected)
        record = json.loads((tmp_path / place / "sampling.json").read_text())
        assert record["provenance"]["registered_as"] == "models:/digits/1"
        assert record["provenance"]["step"] == 100


def test_export_and_inspect_take_the_name_too(run, registry, tmp_path, capsys):
    named = ["models:/digits@best", "--tracking-uri", registry]
    assert main(["inspect", *named]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["step"] == 100
    assert main(["export", *named[:1], str(tmp_path / "pesser.pt"), "--format", "pesser", *named[1:]]) == 0
    assert (tmp_path / "pesser.pt").stat().st_size > 0


def test_a_folder_needs_no_registry(run):
    checkpoint = next((run / "checkpoints").glob("step-00000200-*"))
    assert open_snapshot(checkpoint).provenance == load_snapshot(checkpoint).provenance


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("models:/digits@best", [], "set MLFLOW_TRACKING_URI"),
        ("models:/digits", ["here"], "write models:/NAME@ALIAS"),
        ("models:/digits@none", ["here"], "alias none not found"),
        ("models:/digits/7", ["here"], "version=7) not found"),
        ("models:/other@best", ["here"], "name=other not found"),
        ("models:/digits@best", ["sqlite:////nowhere/mlflow.db"], "there is no file /nowhere/mlflow.db"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(run, registry, tmp_path, capsys, name, options, said):
    where = [registry if option == "here" else option for option in options]
    command = ["sample", name, *STEPS, "--output", str(tmp_path / "out")]
    assert main([*command, *(["--tracking-uri", *where] if where else [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said.lower() in error.lower()
