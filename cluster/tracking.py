"""The uploader: sends the spool to MLflow, survives outages, keeps step and time. Only this file imports mlflow."""

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.fault import Faults
from cluster.spool import Spool, read_events, read_metrics
from cluster.storage import read_json, write_json_atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["BackgroundUploader", "Spool", "Uploader", "default_tracking_uri", "read_metrics"]

_UID_TAG = "rayddpm.run_uid"
_BATCH_EVENTS = 200
_log = logging.getLogger(__name__)


def default_tracking_uri(storage: Path) -> str:
    """A SQLite file in the storage folder: no server needed."""
    return f"sqlite:///{storage / 'mlflow.db'}"


class Uploader:
    """Sends one run directory's spool to the MLflow run of that training run.

    Re-sending is harmless (a point's key in MLflow is its time, step and value), so an event is acknowledged only
    after MLflow took it.
    """

    def __init__(self, run_directory: Path, faults: Faults | None = None):
        """Reads uid, name, tracking_uri and experiment from the run's run.json."""
        self._directory = run_directory
        self._faults = faults or Faults()
        self._run = read_json(run_directory / "run.json")
        self._client: MlflowClient | None = None
        self._run_id: str | None = None

    def drain(self) -> int:
        """Send everything not yet acknowledged; the number of events sent. 0 if another process is sending now.

        Raises whatever MLflow raises while the server is away; what was sent until then stays acknowledged.
        """
        with _exclusive(self._directory / "spool" / "upload.lock") as owned:
            return sum(self._drain_file(path) for path in self._spool_files()) if owned else 0

    def pending(self) -> bool:
        return any(self._acknowledged(path) < path.stat().st_size for path in self._spool_files())

    def _spool_files(self) -> list[Path]:
        return sorted((self._directory / "spool").glob("*.jsonl"))

    def _acknowledged(self, path: Path) -> int:
        marker = path.with_suffix(".acknowledged.json")
        return read_json(marker)["bytes"] if marker.exists() else 0

    def _drain_file(self, path: Path) -> int:
        num_sent, batch = 0, []
        for event, end in read_events(path, self._acknowledged(path)):
            batch.append((event, end))
            if len(batch) == _BATCH_EVENTS:
                num_sent += self._send(path, batch)
                batch = []
        return num_sent + (self._send(path, batch) if batch else 0)

    def _send(self, path: Path, batch: list[tuple[dict[str, Any], int]]) -> int:
        self._faults("upload.before")
        client, run_id = self._connect()
        self._send_metrics(client, run_id, [event for event, _ in batch if event["type"] == "metrics"])
        for event, _ in batch:
            if event["type"] == "params":
                self._send_params(client, run_id, event["values"])
            elif event["type"] == "tags":
                for name, value in event["values"].items():
                    client.set_tag(run_id, name, value)
            elif event["type"] == "artifact":
                self._send_artifact(client, run_id, event)
            elif event["type"] == "status":
                end_time = None if event["status"] == "RUNNING" else int(event["time"] * 1000)
                if end_time is None:
                    client.update_run(run_id, status="RUNNING")
                else:
                    client.set_terminated(run_id, event["status"], end_time)
        self._faults("upload.after")
        write_json_atomic(path.with_suffix(".acknowledged.json"), {"bytes": batch[-1][1]})
        return len(batch)

    def _send_metrics(self, client: "MlflowClient", run_id: str, events: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, value, int(event["time"] * 1000), event["step"])
            for event in events
            for name, value in event["values"].items()
        ]
        for start in range(0, len(points), 1000):  # MLflow's limit of metrics in a batch
            client.log_batch(run_id, metrics=points[start : start + 1000])

    def _send_params(self, client: "MlflowClient", run_id: str, values: dict[str, str]) -> None:
        """MLflow refuses to change a param, so a changed value of a resumed run becomes a tag `changed.<name>`."""
        from mlflow.entities import Param

        known = client.get_run(run_id).data.params
        fresh = [Param(name, value) for name, value in values.items() if name not in known]
        for start in range(0, len(fresh), 100):  # MLflow's limit of params in a batch
            client.log_batch(run_id, params=fresh[start : start + 100])
        for name, value in values.items():
            if known.get(name, value) != value:
                client.set_tag(run_id, f"changed.{name}", value)

    def _send_artifact(self, client: "MlflowClient", run_id: str, event: dict[str, Any]) -> None:
        path = self._directory / event["path"]
        if path.exists():
            client.log_artifact(run_id, str(path), event["folder"] or None)
        else:
            _log.warning("artifact %s is gone and was not sent to MLflow", path)

    def _connect(self) -> tuple["MlflowClient", str]:
        if self._client is None or self._run_id is None:
            _quiet_mlflow()
            from mlflow import MlflowClient

            client = MlflowClient(self._run["tracking_uri"])
            self._run_id = self._find_or_create_run(client)
            self._client = client
        return self._client, self._run_id

    def _find_or_create_run(self, client: "MlflowClient") -> str:
        """The MLflow run that carries this run's uid: one, across workers, restarts and evaluators."""
        marker = self._directory / "spool" / "mlflow.json"
        if marker.exists():
            return read_json(marker)["run_id"]
        name = self._run["experiment"]
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = _artifact_location(self._run["tracking_uri"])
            experiment_id = client.create_experiment(name, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        found = client.search_runs([experiment_id], f"tags.`{_UID_TAG}` = '{self._run['uid']}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
        else:
            tags = {_UID_TAG: self._run["uid"]}
            run_id = client.create_run(experiment_id, tags=tags, run_name=self._run["run"]).info.run_id
        write_json_atomic(marker, {"run_id": run_id, "experiment_id": experiment_id})
        return run_id


class BackgroundUploader:
    """Drains in a thread of an otherwise idle process; `with BackgroundUploader(run_directory): ...`."""

    def __init__(
        self,
        run_directory: Path,
        every_seconds: float = 2.0,
        longest_pause_seconds: float = 60.0,
        faults: Faults | None = None,
    ):
        self._uploader = Uploader(run_directory, faults)
        self._every_seconds, self._longest_pause_seconds = every_seconds, longest_pause_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="mlflow-uploader", daemon=True)

    def __enter__(self) -> "BackgroundUploader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """One last attempt. What MLflow did not take stays in the spool for `python -m cluster upload`."""
        self._stop.set()
        self._thread.join()
        if not self._attempt():
            _log.warning("MLflow is away; the rest stays in the spool: python -m cluster upload RUN_DIR")

    def _loop(self) -> None:
        pause = self._every_seconds
        while not self._stop.wait(pause):
            pause = self._every_seconds if self._attempt() else min(2 * pause, self._longest_pause_seconds)

    def _attempt(self) -> bool:
        try:
            self._uploader.drain()
        except Exception as error:  # noqa: BLE001 (MLflow, its HTTP and its SQL layers raise unrelated types)
            _log.warning("MLflow upload will be tried again: %s", str(error).splitlines()[0])
            return False
        return True


@contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """True for the one process that holds the lock file; released when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _artifact_location(tracking_uri: str) -> str | None:
    """Local artifacts beside a local database; a server chooses its own place."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return (Path(tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()


def _quiet_mlflow() -> None:
    """An uploader retries by itself, so one MLflow call may fail fast; nothing is sent to anyone else."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
