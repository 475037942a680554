"""Runs for the tests of what is sent to MLflow."""

from pathlib import Path

from common.files import write_json_atomic


def describe(directory: Path, uri: str, experiment: str = "tests") -> None:
    write_json_atomic(
        directory / "run.json", {"run": "some-run", "uid": "u1", "tracking_uri": uri, "experiment": experiment}
    )
