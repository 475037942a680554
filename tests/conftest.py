"""What all tests share: system packages and GPUs that a test may need, 40 digits to train on, and where runs lie."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Each of the processes that work side by side, and all that they start, before any library reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from common.code import ROOT
from tests.support.machine import cannot_run

if TYPE_CHECKING:
    from tests.support.cluster import Cluster

# Files and markers whose tests go first, in this order. The last of Ray's kills the head of the cluster they share.
TURNS = (
    *("test_demo.py", "test_elastic.py", "test_ray_pool.py", "test_job.py", "test_ray_train.py", "test_faults_ray.py"),
    *("ray", "test_zero.py", "test_engines.py", "heavy"),
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): a program of tests/debian-packages.txt; skipped without it")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that no process works on alone at the end; and what xdist may not part.

    The tests of a file share fixtures, and all tests that start Ray share its only address on a machine.
    """
    items.sort(key=_turn)
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.path.relative_to(ROOT).as_posix()
        item.add_marker(pytest.mark.xdist_group(group))


def _turn(item: pytest.Item) -> int:
    names = {item.path.name, *(mark.name for mark in item.iter_markers())}
    return next((turn for turn, name in enumerate(TURNS) if name in names), len(TURNS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine cannot run; in CI a missing program is a failure, since CI installs them."""
    for marker in item.iter_markers("needs"):
        program = marker.args[0]
        if shutil.which(program) is None:
            cannot_run(f"{program} is missing: make test-deps installs it")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 packed digits, for all tests that only read them."""
    from tests.support.trainer import digits  # imports torch, which few tests of the data need

    return digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of a file's tests lie."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One without runs, to copy: to make it takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """A Ray cluster of two CPUs for all tests that need one."""
    from tests.support.cluster import started_cluster

    with started_cluster(tmp_path_factory.mktemp("home"), num_cpus=2) as cluster:
        yield cluster
