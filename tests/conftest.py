"""What all tests share: system packages and GPUs that a test may need, 40 digits to train on, and where runs lie."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Each of the processes that work side by side, and all that they start, before any library reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.support.machine import cannot_run

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling

    from tests.support.clusters.cluster import Cluster

# Files whose tests start or need Ray. The last kills the head of the cluster that those before it share.
RAY_FILES = (
    *("test_demo.py", "test_elastic.py", "test_local.py", "test_ray_runner.py", "test_ray_pool.py", "test_wheel.py"),
    *("test_interrupts_ray.py", "test_hosts.py", "test_slurm.py", "test_jobs.py"),
    *("test_job.py", "test_ray_train.py", "test_faults_ray.py"),
)
# Files and markers whose tests go first, in this order.
TURNS = (*RAY_FILES, "test_zero.py", "test_engines.py", "heavy")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): a program of tests/debian-packages.txt; skipped without it")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadScopeScheduling":
    """What xdist may not part: a file's tests share fixtures, and two clusters of Ray are too much for two cores.

    xdist's own groups (`--dist loadgroup`) have no effect with pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "ray" if Path(path).name in RAY_FILES else path

    return Files(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("ray") and item.path.name not in RAY_FILES:
        raise pytest.UsageError(f"{item.nodeid} needs Ray: name its file in RAY_FILES of tests/conftest.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that no process works on alone at the end."""
    items.sort(key=_turn)


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
    from tests.support.clusters.cluster import started_cluster

    with started_cluster(tmp_path_factory.mktemp("home"), num_cpus=2) as cluster:
        yield cluster
