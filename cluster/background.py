"""The uploader's thread: sends what a run says while it trains, and the rest when it ends."""

import logging
import threading
from pathlib import Path

from cluster.fault import Faults
from cluster.tracking import Uploader

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
        """closing_seconds: how long the end waits for another process, an evaluator, that is sending the spool."""
        self._uploader = Uploader(run_directory, faults)
        self._every_seconds, self._longest_pause_seconds = every_seconds, longest_pause_seconds
        self._closing_seconds = closing_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="mlflow-uploader", daemon=True)

    def __enter__(self) -> "BackgroundUploader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """One last attempt. What MLflow did not take stays in the spool for `python -m cluster upload`."""
        self._stop.set()
        self._thread.join()
        if not self._attempt(self._closing_seconds):
            _log.warning("MLflow is away; the rest stays in the spool: python -m cluster upload RUN_DIR")

    def _loop(self) -> None:
        pause = self._every_seconds
        while not self._stop.wait(pause):
            pause = self._every_seconds if self._attempt() else min(2 * pause, self._longest_pause_seconds)

    def _attempt(self, wait_seconds: float = 0.0) -> bool:
        try:
            sent = self._uploader.drain(wait_seconds)
        except OSError as error:
            _log.warning("MLflow upload will be tried again: %s", error)
            return False
        if sent is None and wait_seconds:
            _log.warning("another process is still sending the spool; what it leaves: python -m cluster upload RUN_DIR")
        return True
