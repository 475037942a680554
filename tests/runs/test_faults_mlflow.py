"""MLflow away at the start, in the middle and at the end of a run: a real server, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from cluster.tracking.spool import read_metrics
from common.code import ROOT
from common.files import read_json
from tests.support.failures.faults import TINY, Running, run, wait_for

pytestmark = pytest.mark.heavy

PACED = "step.before:again:delay=0.1"


class Server:
    """`mlflow server` on a port of its own; what it was told survives its death in SQLite."""

    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder

    def start(self) -> None:
        store = ("--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db")
        command = [sys.executable, "-m", "mlflow", "server", *store, "--host", "127.0.0.1", "--port", str(self._port)]
        self._process = subprocess.Popen(
            [*command, "--workers", "1", "--default-artifact-root", str(self._folder / "artifacts")],
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self._answers)

    def kill(self) -> None:
        """SIGKILL to it and its workers."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            return requests.get(f"{self.uri}/health", timeout=5).ok
        except (requests.ConnectionError, requests.Timeout):  # not up, or not yet
            return False


def step_of(directory: Path) -> int:
    points = read_metrics(directory).get("train/loss", [])
    return points[-1][0] if points else 0


def assert_in_mlflow_once(directory: Path, uri: str, num_steps: int) -> str:
    """Every point of the spool, once, with its step and its time, in the only run there is. Returns its status."""
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'rayddpm'")
    (run,) = client.search_runs([experiment.experiment_id])
    spooled = read_metrics(directory)
    assert [step for step, _, _ in spooled["train/loss"]] == list(range(1, num_steps + 1))
    assert set(run.data.metrics) == set(spooled)
    for name, points in spooled.items():
        sent = client.get_metric_history(run.info.run_id, name)
        assert sorted((m.step, m.value, m.timestamp) for m in sent) == [(s, v, int(t * 1000)) for s, v, t in points]
    return run.info.status


def test_an_mlflow_server_may_be_away_at_the_start_in_the_middle_and_at_the_end(data: Path, tmp_path: Path) -> None:
    server, directory = Server(tmp_path), tmp_path / "run"
    arguments = [*TINY, "--data.path", str(data), "--run.storage", str(tmp_path), "--run.name", "run"]
    arguments += ["--run.tracking_uri", server.uri, "--train.num_steps", "100000", "--checkpoint.every_steps", "1000"]
    with Running(tmp_path / "logs", arguments, {"RAYDDPM_FAULT": PACED}) as running:
        wait_for(lambda: "MLflow upload will be tried again" in running.output)
        server.start()
        acknowledged = directory / "spool" / "train.acknowledged.json"
        wait_for(acknowledged.exists)
        arrived = step_of(directory)
        wait_for(lambda: step_of(directory) >= arrived + 30)
        killed, sent = step_of(directory), acknowledged.read_text()
        server.kill()
        wait_for(lambda: step_of(directory) >= killed + 30)
        server.start()
        wait_for(lambda: acknowledged.read_text() != sent)
        server.kill()
        running.send(signal.SIGTERM)
        ended = running.wait()
    assert ended.code == 130, ended.output
    assert "MLflow is away; the rest stays in the spool: python -m cluster upload RUN_DIR" in ended.output
    server.start()
    upload = [sys.executable, "-m", "cluster", "upload", str(directory)]
    for expected in ("sent ", "sent 0 events"):
        uploaded = subprocess.run(upload, cwd=ROOT, capture_output=True, text=True, check=False)
        assert uploaded.returncode == 0, uploaded.stderr
        assert uploaded.stdout.startswith(expected)
    assert assert_in_mlflow_once(directory, server.uri, step_of(directory)) == "KILLED"
    server.kill()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_upload_that_fails_or_dies_repeats_no_point(data: Path, tmp_path: Path, moment: str) -> None:
    """Killed after MLflow took the points and before the spool knows, they are sent again."""
    directory = tmp_path / "run"
    arguments = [*TINY, "--data.path", str(data), "--run.storage", str(tmp_path), "--run.name", "run"]
    faults = {"RAYDDPM_FAULT": f"{PACED},upload.{moment}:raise,upload.{moment}:kill"}
    killed = run(tmp_path / "logs", *arguments, "--train.num_steps", "100", **faults)
    assert killed.code == -signal.SIGKILL, killed.output
    assert "MLflow upload will be tried again: fault on purpose" in killed.output
    reached = step_of(directory)
    resumed = run(tmp_path / "logs", *arguments, "--train.num_steps", str(reached + 2))
    assert resumed.code == 0, resumed.output
    uri = read_json(directory / "run.json")["tracking_uri"]
    assert assert_in_mlflow_once(directory, uri, reached + 2) == "FINISHED"
