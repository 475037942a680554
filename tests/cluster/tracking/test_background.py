"""The uploader beside a run: what it says while MLflow is away, and what it waits for when the run ends."""

import fcntl
import io
import logging
import threading
from pathlib import Path

import pytest

from cluster.tracking.background import BackgroundUploader
from cluster.tracking.spool import Spool
from cluster.tracking.uploader import Uploader
from tests.support.failures.processes import in_new_process
from tests.support.tracking import describe


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "TimeoutError"),
        (OSError("http://me:secret@host/api is away\nand more"), "http://***@host/api is away"),
    ],
)
def test_an_error_is_one_line_without_a_password(
    run_directory: Path, caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    def fail(moment: str) -> None:
        raise error

    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    with BackgroundUploader(run_directory, faults=fail):  # type: ignore[arg-type]
        pass
    assert f"MLflow upload will be tried again: {said}" in caplog.messages
    assert "secret" not in caplog.text


@pytest.mark.parametrize("ends", [True, False])
def test_a_run_that_ends_waits_for_whoever_is_sending(
    run_directory: Path, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    with open(run_directory / "spool" / "upload.lock", "w") as evaluator:
        fcntl.flock(evaluator, fcntl.LOCK_EX)
        release = threading.Timer(0.3, lambda: fcntl.flock(evaluator, fcntl.LOCK_UN))
        if ends:
            release.start()
        with BackgroundUploader(run_directory, closing_seconds=30 if ends else 0.2):
            pass
        release.cancel()
    assert Uploader(run_directory).pending() is not ends
    assert ("another process is still sending" in caplog.text) is not ends


def closed_while_mlflow_is_away(run_directory: Path) -> tuple[bool, str]:
    """Whether a thread of the uploader still tries, and what was logged."""
    log = io.StringIO()
    logging.basicConfig(stream=log)
    with BackgroundUploader(run_directory, closing_seconds=0.1) as uploader:
        pass
    return uploader._thread.is_alive(), log.getvalue()


def test_an_mlflow_that_does_not_answer_does_not_keep_a_run_from_ending(run_directory: Path, tmp_path: Path) -> None:
    """A database that is away: MLflow itself tries for more than a minute and a half, and cannot be interrupted."""
    describe(run_directory, f"sqlite:///{tmp_path}")  # a folder cannot be opened as a database
    Spool(run_directory, "train").metrics({"train/loss": 0.5}, 10)
    # In a process of its own, where MLflow keeps no other test waiting meanwhile.
    still_trying, log = in_new_process(closed_while_mlflow_is_away, run_directory)
    assert still_trying
    assert "MLflow does not answer, and is not waited for; the rest stays in the spool" in log
