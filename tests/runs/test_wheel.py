"""The installed command `rayddpm`, from a wheel: in an empty folder, and in one that has folders named as ours."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.code import PACKAGES, ROOT

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, without the libraries, which are this environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels, target = folder / "source", folder / "wheels", folder / "installed"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    [wheel] = wheels.glob("rayddpm-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    return target


@pytest.fixture(params=[pytest.param("empty", marks=pytest.mark.slow), "hostile"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the command is called: nothing is there, or packages of our names that must not be imported."""
    if request.param == "hostile":
        for package in PACKAGES:
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").write_text("raise SystemExit('a package of the current folder')")
    return tmp_path


def rayddpm(installed: Path, folder: Path, *arguments: str) -> str:
    """What the installed command prints."""
    # On this path, the wheel comes before the checkout that this environment has installed.
    environment = os.environ | {"PYTHONPATH": str(installed), "HOME": str(folder / "home")}
    command = [str(installed / "bin" / "rayddpm"), *arguments]
    shown = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return shown.stdout


def test_help_version_and_a_dry_run_work_in_any_folder(installed: Path, folder: Path) -> None:
    assert rayddpm(installed, folder, "--help").startswith("usage: rayddpm COMMAND")
    assert rayddpm(installed, folder, "--version").startswith("rayddpm 0.")
    planned = json.loads(rayddpm(installed, folder, "train", "--preset", "demo", "--dry-run"))
    assert planned["global_batch_size"] == 64


@pytest.mark.parametrize("launcher", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_two_workers_train_two_steps_and_the_model_is_sampled(installed: Path, folder: Path, launcher: str) -> None:
    """Workers are processes of their own, which find the packages by themselves."""
    steps = ["--train.num-steps", "2", "--train.global-batch-size", "8", "--checkpoint.every-steps", "2"]
    place = ["--run.name", "two", "--run.storage", "runs", "--data.path", "data"]
    rayddpm(installed, folder, "data", "demo", "digits", "data", "--num-images", "40")
    rayddpm(installed, folder, "train", "--preset", "demo", "--launcher", launcher, *steps, *place)
    assert json.loads((folder / "runs" / "two" / "FINISHED.json").read_text()) == {"step": 2}
    [checkpoint] = (folder / "runs" / "two" / "checkpoints").glob("step-00000002-*")
    sampling = ["--num-images", "2", "--num-sampling-steps", "2", "--sampler", "ddim", "--device", "cpu"]
    rayddpm(installed, folder, "models", "sample", str(checkpoint), *sampling, "--output", "samples")
    assert (folder / "samples" / "grid.png").is_file()


def test_the_wheel_is_imported_by_its_one_name(installed: Path, folder: Path) -> None:
    """With the types that a checker follows, and whatever lies in the current folder."""
    code = "import rayddpm; print(rayddpm.__file__, rayddpm.load.__module__, rayddpm.TrainedModel.sample.__doc__[:10])"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    arguments = [sys.executable, "-P", "-c", code]  # -P: Python itself puts the current folder first
    shown = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split()[0] == str(installed / "rayddpm" / "__init__.py")
    assert all((installed / package / "py.typed").is_file() for package in ("rayddpm", "models", "common"))
