"""A run to send from, and the database that it is sent to."""

import shutil
from pathlib import Path

import pytest

from cluster.tracking.uploader import default_tracking_uri
from tests.support.tracking import describe


@pytest.fixture
def run_directory(tmp_path: Path, mlflow_database: Path) -> Path:
    directory = tmp_path / "storage" / "some-run"
    directory.mkdir(parents=True)
    shutil.copy(mlflow_database, directory.parent)
    describe(directory, default_tracking_uri(directory.parent))
    return directory
