import os
from pathlib import Path

import pytest

from cluster.tracking.uri import artifact_location, checked_tracking_uri, default_tracking_uri


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:///sub/mlflow.db?timeout=5", "sqlite:///{here}/sub/mlflow.db?timeout=5"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("sqlite:////srv/a%3Fb%2541/mlflow.db?timeout=5", "sqlite:////srv/a%3Fb%2541/mlflow.db?timeout=5"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:secret@host/mlflow", "https://me:secret@host/mlflow"),
        ("postgresql+psycopg2://me:secret@host/runs", "postgresql+psycopg2://me:secret@host/runs"),
        ("postgresql:///runs?host=/run/postgresql", "postgresql:///runs?host=/run/postgresql"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
    ],
)
def test_what_mlflow_takes_is_taken_and_made_absolute(
    given: str, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_tracking_uri(given, os.path.abspath) == made.format(here=tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "/srv/mlruns",
        "file:///srv/mlruns",
        "sqlite:mlflow.db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "http://",
        "http://host:port",
        "http:/host",
        "postgresql://",
        "gopher://me:secret@host",
    ],
)
def test_what_mlflow_would_not_take_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match=r"^run.tracking_uri '.* is none of sqlite:///PATH") as refused:
        checked_tracking_uri(uri, os.path.abspath)
    assert "secret" not in str(refused.value)


def test_artifacts_lie_beside_a_local_database_alone() -> None:
    assert artifact_location("sqlite:////srv/mlflow.db?timeout=5") == "file:///srv/mlartifacts"
    assert artifact_location("sqlite:////srv/a%3Fb%2541/mlflow.db") == "file:///srv/a%3Fb%2541/mlartifacts"
    assert artifact_location("http://host") is None


@pytest.mark.parametrize("name", ["a?b", "a%41b"])
def test_a_storage_folder_that_no_address_of_sqlite_can_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"run.storage .* use a folder of another name"):
        default_tracking_uri(tmp_path / name)
