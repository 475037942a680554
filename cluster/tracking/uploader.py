"""The uploader: sends the spool to MLflow, survives outages, keeps step and time."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cluster.fault import Faults
from cluster.run_directory import RUN, SPOOL
from cluster.tracking.acknowledged import Acknowledged
from cluster.tracking.copies import own_uid
from cluster.tracking.sending import send_events
from cluster.tracking.spool import UNREADABLE, Spool, read_events, read_metrics
from cluster.tracking.uri import artifact_location, default_tracking_uri
from cluster.tracking.view import EXPERIMENT_TAGS
from common.files import read_json, write_json_atomic
from common.redaction import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Spool", "UploadError", "Uploader", "default_tracking_uri", "read_metrics"]

_UID_TAG = "rayddpm.run_uid"
_BATCH_EVENTS = 200
_log = logging.getLogger(__name__)


class UploadError(OSError):
    """MLflow did not take what was sent; one line, without passwords."""


class Uploader:
    """Sends one run directory's spool to the MLflow run of that training run.

    Re-sending is harmless (a point's key in MLflow is its time, step and value), so an event is acknowledged only
    after MLflow took it, and all of them are sent again when the MLflow run is another one than before.
    """

    def __init__(self, run_directory: Path, faults: Faults | None = None, acknowledged: Acknowledged | None = None):
        """Reads uid, name, tracking_uri and experiment from the run's run.json, anew for each drain.
        acknowledged: one for all uploaders of this run, from whoever makes many of them."""
        self._directory = run_directory
        self._faults = faults or Faults()
        self._acknowledged = acknowledged or Acknowledged()
        self._marker = run_directory / SPOOL / "mlflow.json"
        self._run = self._read_run()
        self._connection: tuple[MlflowClient, str] | None = None
        self.progress = 0
        """Goes up whenever MLflow has answered; for who waits while another thread drains."""

    def drain(self, wait_seconds: float = 0.0) -> int | None:
        """Send everything not yet acknowledged; the number of events sent. None if another process is sending now,
        and still is after wait_seconds.

        Raises UploadError while the server is away; what was sent until then stays acknowledged.
        """
        with _exclusive(self._directory / SPOOL / "upload.lock", wait_seconds) as owned:
            if not owned:
                return None
            try:
                return self._drain()
            except Exception as error:  # MLflow, its HTTP and its SQL layers raise unrelated types
                self._connection = None  # the run may be gone: look for it again
                lines = redacted(str(error)).strip().splitlines()
                raise UploadError(lines[0] if lines else type(error).__name__) from error

    def pending(self) -> bool:
        return any(self._behind())

    def _drain(self) -> int:
        run = self._read_run()
        if run != self._run:
            self._connection = None
        self._run = run
        if not self.pending():
            return 0
        client, run_id = self._connection = self._connection or self._connect()
        return sum(self._drain_file(client, run_id, path, start) for path, start in self._behind())

    def _read_run(self) -> dict[str, Any]:
        """run.json, under the uid that is this folder's own: a copy must not log into the original's MLflow run."""
        run = read_json(self._directory / RUN)
        return {**run, "uid": own_uid(self._directory, run), "original_uid": run["uid"]}

    def _spool_files(self) -> list[Path]:
        return sorted((self._directory / SPOOL).glob("*.jsonl"))

    def _behind(self) -> Iterator[tuple[Path, int]]:
        """Spool files of which the MLflow run of this place has not all, with the bytes that it has."""
        remembered = self._remembered_run() is not None
        for path in self._spool_files():
            num_bytes = self._acknowledged.num_bytes(path) if remembered else 0
            if num_bytes < path.stat().st_size:
                yield path, num_bytes

    def _remembered_run(self) -> str | None:
        """The id of the MLflow run that was sent to, unless that was at another place."""
        marker = read_json(self._marker) if self._marker.exists() else {"run_id": None}
        place = _place(self._run)
        earlier = {**place, "uid": self._run["original_uid"]}  # markers of earlier versions name neither
        return marker["run_id"] if {**earlier, **marker}.items() >= place.items() else None

    def _drain_file(self, client: "MlflowClient", run_id: str, path: Path, start: int) -> int:
        num_sent, batch = 0, []
        for event, end in read_events(path, start):
            batch.append((event, end))
            if len(batch) == _BATCH_EVENTS:
                num_sent += self._send(client, run_id, path, batch)
                batch = []
        return num_sent + (self._send(client, run_id, path, batch) if batch else 0)

    def _send(self, client: "MlflowClient", run_id: str, path: Path, batch: list[tuple[dict[str, Any], int]]) -> int:
        self._faults("upload.before")
        send_events(client, run_id, self._directory, [event for event, _ in batch])
        self._faults("upload.after")
        self._acknowledged.write(path, batch[-1][1])
        self.progress += 1
        return sum(event["type"] not in (UNREADABLE, "checkpoint", "start") for event, _ in batch)

    def _connect(self) -> tuple["MlflowClient", str]:
        """The MLflow run that carries this run's uid: one, across workers, restarts and evaluators."""
        _quiet_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient(self._run["tracking_uri"])
        experiment_id = self._experiment(client)
        run_id = self._remembered_run()
        if run_id is None or not _is_there(client, run_id, experiment_id):
            # Forgotten before the new run is remembered, so that a crash in between only sends again.
            for path in self._spool_files():
                self._acknowledged.forget(path)
            run_id = self._find_or_create_run(client, experiment_id)
        write_json_atomic(self._marker, {"run_id": run_id, "experiment_id": experiment_id, **_place(self._run)})
        return client, run_id

    def _experiment(self, client: "MlflowClient") -> str:
        name = self._run["experiment"]
        experiment = client.get_experiment_by_name(name)
        self.progress += 1
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                # Its name stays taken, and nothing can be logged into it.
                _log.warning("MLflow's experiment %r was deleted; restored: %s logs into it", name, self._directory)
                client.restore_experiment(experiment.experiment_id)
            for tag in EXPERIMENT_TAGS.keys() - experiment.tags.keys():  # what a person chose stays
                client.set_experiment_tag(experiment.experiment_id, tag, EXPERIMENT_TAGS[tag])
            return experiment.experiment_id
        place = artifact_location(self._run["tracking_uri"])
        return client.create_experiment(name, artifact_location=place, tags=EXPERIMENT_TAGS)

    def _find_or_create_run(self, client: "MlflowClient", experiment_id: str) -> str:
        found = client.search_runs([experiment_id], f"tags.`{_UID_TAG}` = '{self._run['uid']}'", max_results=1)
        if found:
            return found[0].info.run_id
        tags = {_UID_TAG: self._run["uid"]}
        return client.create_run(experiment_id, tags=tags, run_name=self._run["run"]).info.run_id


@contextmanager
def _exclusive(path: Path, wait_seconds: float) -> Iterator[bool]:
    """True for the one process that holds the lock file; released when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with open(path, "w") as file:
        while not (owned := _try_lock(file)) and time.monotonic() < deadline:
            time.sleep(0.1)  # flock itself knows no bound
        yield owned


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _place(run: dict[str, Any]) -> dict[str, str]:
    """Where a run is sent, and as which. Its password is not part of that, and is written into run.json alone."""
    return {"tracking_uri": redacted(run["tracking_uri"]), "experiment": run["experiment"], "uid": run["uid"]}


def _is_there(client: "MlflowClient", run_id: str, experiment_id: str) -> bool:
    """Whether the server has the run, in this experiment and not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return info.lifecycle_stage == "active" and info.experiment_id == experiment_id


def _quiet_mlflow() -> None:
    """No retries of its own: a request for a new run, repeated as its answer was lost, makes two. No telemetry."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
