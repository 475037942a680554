"""What all tests share: system packages and GPUs that a test may need, 40 digits to train on, and where runs lie."""

import shutil
from pathlib import Path

import pytest

from tests.support.machine import cannot_run


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): a program of tests/debian-packages.txt; skipped without it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that it does not run on by itself when all others have ended."""
    items.sort(key=lambda item: item.path.name != "test_zero.py")


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
    from tests.support.trainer import digits  # imports torch, which few tests of the data need

    return digits(tmp_path_factory.mktemp("digits") / "data")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of a file's tests lie."""
    return tmp_path_factory.mktemp("storage")
