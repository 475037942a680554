"""What all tests share: system packages and GPUs that a test may need, and 40 digits to train on."""

import shutil
from pathlib import Path

import pytest

from tests.machine_support import cannot_run

LONGEST_FILES = ("test_trainer_zero.py", "test_faults_workers.py", "test_faults_mlflow.py", "test_trainer_resume.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): a program of tests/debian-packages.txt; skipped without it")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests in one process, all with a Ray cluster too; what takes longest first, so as not to be last."""
    groups = {item: "ray" if item.get_closest_marker("ray") else item.path.name for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    places = {group: place for place, group in enumerate(("ray", *LONGEST_FILES))}
    items.sort(key=lambda item: places.get(groups[item], len(places)))


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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.trainer_support import digits  # imports torch, which few tests of the data need

    return digits(tmp_path_factory.mktemp("digits") / "data")
