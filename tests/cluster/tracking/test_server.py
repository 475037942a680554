"""MLflow's own server as docs/OPERATIONS.md sets it up: PostgreSQL, artifacts in S3 through the server, passwords."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import requests
from mlflow import MlflowClient
from moto.server import ThreadedMotoServer

from cluster.tracking.spool import Spool, read_metrics
from cluster.tracking.uploader import Uploader, UploadError
from tests.support.servers.data_servers import free_port
from tests.support.servers.postgres import PASSWORD as DATABASE_PASSWORD
from tests.support.servers.postgres import Postgres, postgres
from tests.support.tracking import describe

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.needs("pg_createcluster")]

PASSWORD = "hunter2-of-the-admin"
BUCKET = "mlflow-artifacts"


class Server(NamedTuple):
    """The parts of it that a test may look into."""

    uri: str
    database: Postgres
    bucket: Any


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    endpoint = "http://{}:{}".format(*moto.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "us-east-1"}
    resource = boto3.resource(
        "s3", endpoint_url=endpoint, aws_access_key_id="x", aws_secret_access_key="y", region_name="us-east-1"
    )
    bucket = resource.create_bucket(Bucket=BUCKET)
    with postgres() as database:
        database.run("createdb", "users")
        auth = folder / "basic_auth.ini"
        settings = f"default_permission=NO_PERMISSIONS\ndatabase_uri={database.uri('users')}\n"
        auth.write_text(f"[mlflow]\n{settings}admin_username=admin\nadmin_password={PASSWORD}\n")
        environment = {
            **{"MLFLOW_BACKEND_STORE_URI": database.uri("mlflow"), "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}"},
            **{"MLFLOW_S3_ENDPOINT_URL": endpoint, "MLFLOW_AUTH_CONFIG_PATH": str(auth), **keys},
            **{"MLFLOW_FLASK_SERVER_SECRET_KEY": "k", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"},
        }
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port)],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _wait_until_up(process, f"http://127.0.0.1:{port}", folder / "log")
            yield Server(f"http://127.0.0.1:{port}", database, bucket)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            moto.stop()


@pytest.fixture(autouse=True)
def _admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def _wait_until_up(process: "subprocess.Popen[bytes]", uri: str, log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if requests.get(f"{uri}/health", timeout=5).ok:
                return
        except (requests.ConnectionError, requests.Timeout):
            time.sleep(0.1)
    pytest.fail(log.read_text()[-2000:])


def make_run(directory: Path, uri: str, experiment: str) -> Uploader:
    """A run of three steps, whose spool is still to be sent."""
    describe(directory, uri, experiment)
    picture = directory / "reports" / "grid.png"
    picture.parent.mkdir()
    picture.write_bytes(b"a picture of " + experiment.encode())
    spool = Spool(directory, "train")
    spool.params({"train.seed": 0})
    for step in (1, 2, 3):
        spool.metrics({"train/loss": 1 / step}, step)
    spool.artifact(picture, "reports")
    spool.status("FINISHED")
    spool.close()
    return Uploader(directory)


def assert_there_once(client: MlflowClient, directory: Path, experiment: str) -> str:
    """The run with all its points, each once. Returns its id."""
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"train.seed": "0"}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    points = [(step, value, int(seconds * 1000)) for step, value, seconds in read_metrics(directory)["train/loss"]]
    assert sorted((metric.step, metric.value, metric.timestamp) for metric in history) == points
    return run.info.run_id


def test_numbers_go_to_postgresql_and_files_to_the_bucket(server: Server, tmp_path: Path) -> None:
    """The sender has no key of the bucket: the server passes files on."""
    assert make_run(tmp_path, server.uri, "stored").drain() == 6
    run_id = assert_there_once(MlflowClient(server.uri), tmp_path, "stored")
    rows = server.database.run(
        "psql", "--no-align", "--tuples-only", "-c", f"select step from metrics where run_uuid = '{run_id}'", "mlflow"
    )
    assert sorted(rows.split()) == ["1", "2", "3"]
    (stored,) = [item for item in server.bucket.objects.all() if run_id in item.key]
    assert stored.key.endswith("artifacts/reports/grid.png")
    assert stored.get()["Body"].read() == b"a picture of stored"


def test_a_wrong_password_is_refused_and_the_spool_waits(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploader = make_run(tmp_path, server.uri, "refused")
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-of-somebody-else")
        with pytest.raises(UploadError, match=r"401|authenticated") as refused:
            uploader.drain()
        assert "hunter2" not in str(refused.value)
    assert uploader.pending()
    assert MlflowClient(server.uri).get_experiment_by_name("refused") is None
    assert uploader.drain() == 6
    assert_there_once(MlflowClient(server.uri), tmp_path, "refused")


def test_a_database_that_is_started_again_costs_no_point(server: Server, tmp_path: Path) -> None:
    uploader = make_run(tmp_path, server.uri, "restarted")
    server.database.stop()
    with pytest.raises(UploadError) as away:
        uploader.drain()
    assert DATABASE_PASSWORD not in str(away.value)
    server.database.start()
    assert uploader.drain() == 6
    assert_there_once(MlflowClient(server.uri), tmp_path, "restarted")


def test_a_backup_is_restored_and_upgraded(server: Server, tmp_path: Path) -> None:
    """The commands of docs/OPERATIONS.md: the run is there, and is sent on to as the same run."""
    make_run(tmp_path, server.uri, "saved").drain()
    backup = server.database.run("pg_dump", "--no-owner", "mlflow")
    server.database.run("createdb", "restored")
    server.database.run("psql", "--quiet", "--set=ON_ERROR_STOP=1", "restored", given=backup)
    uri = server.database.uri("restored")
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True, capture_output=True)
    assert_there_once(MlflowClient(uri), tmp_path, "saved")


def test_no_password_of_the_server_is_on_a_command_line(server: Server) -> None:
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if _is_readable(path)]
    assert any(b"basic-auth" in line for line in lines)
    assert not [line for line in lines if PASSWORD.encode() in line or DATABASE_PASSWORD.encode() in line]


def _is_readable(path: Path) -> bool:
    """Processes come and go."""
    try:
        return bool(path.read_bytes())
    except OSError:
        return False
