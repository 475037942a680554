"""The uploader's thread: sends what a run says while it trains, and the rest when it ends."""

import logging
import threading
import time
from pathlib import Path

from cluster.fault import Faults
from cluster.tracking.uploader import Uploader
from cluster.tracking.view import where_to_look

_REST = "the rest stays in the spool: python -m cluster upload RUN_DIR"
_log = logging.getLogger(__name__)


class BackgroundUploader:
    """Drains in a thread of an otherwise idle process; `with BackgroundUploader(run_directory): ...`."""

    def __init__(
        self,
        run_directory: Path,
        every_seconds: float = 2.0,
        longest_pause_seconds: float = 60.0,
        closing_seconds: float = 30.0,
        faults: Faults | None = None,
    ):
        """closing_seconds: how long the end waits for another process, an evaluator, that is sending the spool; twice
        as long for an MLflow that answers nothing."""
        self._uploader = Uploader(run_directory, faults)
        self._every_seconds, self._longest_pause_seconds = every_seconds, longest_pause_seconds
        self._closing_seconds = closing_seconds
        self._directory, self._is_shown = run_directory, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="mlflow-uploader", daemon=True)

    def __enter__(self) -> "BackgroundUploader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """One last attempt. What MLflow did not take stays in the spool for `python -m cluster upload`.

        A call of MLflow cannot be interrupted: one that does not end is left behind in its thread.
        """
        self._stop.set()
        seen = -1
        while self._thread.is_alive():
            if seen != self._uploader.progress:
                seen, deadline = self._uploader.progress, time.monotonic() + 2 * self._closing_seconds
            if time.monotonic() > deadline:
                _log.warning("MLflow does not answer, and is not waited for; %s", _REST)
                return
            self._thread.join(0.2)

    def _loop(self) -> None:
        pause = self._every_seconds
        while not self._stop.wait(pause):
            pause = self._every_seconds if self._attempt() else min(2 * pause, self._longest_pause_seconds)
        if not self._attempt(self._closing_seconds):
            _log.warning("MLflow is away; %s", _REST)

    def _attempt(self, wait_seconds: float = 0.0) -> bool:
        try:
            sent = self._uploader.drain(wait_seconds)
        except OSError as error:
            _log.warning("MLflow upload will be tried again: %s", error)
            return False
        self._show()
        if sent is None and wait_seconds:
            _log.warning("another process is still sending the spool; what it leaves: python -m cluster upload RUN_DIR")
        return True

    def _show(self) -> None:
        """Say where the run is seen, once it is."""
        links = [line for line in where_to_look(self._directory) if "/#/" in line]
        if links and not self._is_shown:
            self._is_shown = True
            _log.info("MLflow shows this run at %s", links[0])
