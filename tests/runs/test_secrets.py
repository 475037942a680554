"""Passwords and keys that a run is given: where they are found afterwards, on disk, in MLflow and on command lines."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from werkzeug.wrappers import Request

from common.code import ROOT
from tests.support.failures.faults import TINY
from tests.support.servers.mlflow_server import Answer, mlflow_server

pytestmark = pytest.mark.heavy

GIVEN = {
    "MLFLOW_TRACKING_USERNAME": "alice",
    "MLFLOW_TRACKING_PASSWORD": "hunter2-of-mlflow",
    "AWS_ACCESS_KEY_ID": "hunter2-key-id",
    "AWS_SECRET_ACCESS_KEY": "hunter2-secret-key",
    "AWS_SESSION_TOKEN": "hunter2-session",
    "RAY_AUTH_TOKEN": "hunter2-of-ray",
}
IN_ADDRESS = "hunter2-in-the-address"
"""A password inside --run.tracking_uri, from a file, which docs/SECURITY.md allows in run.json alone."""


def holding(folder: Path, secret: str) -> set[str]:
    """Names of the files below the folder that hold a secret, as it is or in base64."""
    encoded = base64.b64encode(f"alice:{secret}".encode())
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix()
        for path in paths
        if secret.encode() in (content := path.read_bytes()) or encoded in content
    }


def command_lines(process: "subprocess.Popen[str]", log: Path) -> list[str]:
    """Of the process and all below it, looked at until it ends."""
    seen = set()
    deadline = time.monotonic() + 300
    while process.poll() is None:
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        for each in psutil.process_iter():
            try:
                if process.pid in (each.pid, *(parent.pid for parent in each.parents())):
                    seen.add(" ".join(each.cmdline()))
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    return sorted(seen)


def test_secrets_reach_mlflow_and_nothing_else(data: Path, tmp_path: Path) -> None:
    asked: list[Request] = []

    def note(request: Request) -> Answer | None:
        asked.append(request)
        return None

    with mlflow_server(tmp_path) as server:
        server.before = note
        uri = server.uri.replace("http://", f"http://alice:{IN_ADDRESS}@")
        config = tmp_path / "given" / "config.toml"
        config.parent.mkdir(mode=0o700)
        config.write_text(f'[run]\ntracking_uri = "{uri}"\n')
        where = ("--data.path", str(data), "--run.storage", str(tmp_path / "runs"), "--run.name", "run")
        given = ("--config", str(config), "--workers.num_workers", "2")
        with open(tmp_path / "log.txt", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "trainer/main.py", *TINY, *where, *given],
                cwd=ROOT,
                env={**os.environ, **GIVEN},
                stdout=log,
                stderr=log,
                text=True,
            )
        lines = command_lines(process, tmp_path / "log.txt")
    log_text = (tmp_path / "log.txt").read_text()
    assert process.returncode == 0, log_text
    assert f"{server.uri}/#/experiments/" in log_text  # the address is shown, without its password

    expected = base64.b64encode(f"alice:{IN_ADDRESS}".encode()).decode()  # it goes before the environment's
    assert {request.headers.get("Authorization") for request in asked} == {f"Basic {expected}"}
    bodies = "".join(request.url + json.dumps(request.get_data(as_text=True)) for request in asked)
    assert "train/loss" in bodies
    assert len(lines) >= 3, lines  # the command and two workers
    for secret in [value for value in GIVEN.values() if "hunter2" in value]:
        assert holding(tmp_path, secret) == set(), secret
    assert holding(tmp_path, IN_ADDRESS) == {"given/config.toml", "runs/run/run.json"}
    assert "hunter2" not in bodies
    assert not [line for line in lines if "hunter2" in line]
