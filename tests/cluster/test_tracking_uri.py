import os
from pathlib import Path

import pytest

from cluster.tracking_uri import artifact_location, checked_tracking_uri
from common.redaction import redacted


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:///sub/mlflow.db?timeout=5", "sqlite:///{here}/sub/mlflow.db?timeout=5"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:sec@ret@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://host/runs?user=me&password=secret&a=b", "postgresql://host/runs?user=me&password=***&a=b"),
        ("no route to 'http://me:secret@host/api' (5 tries)", "no route to 'http://***@host/api' (5 tries)"),
        ("sqlite:////srv/me@host/mlflow.db", "sqlite:////srv/me@host/mlflow.db"),
    ],
)
def test_no_password_is_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_artifacts_lie_beside_a_local_database_alone() -> None:
    assert artifact_location("sqlite:////srv/mlflow.db?timeout=5") == "file:///srv/mlartifacts"
    assert artifact_location("http://host") is None
