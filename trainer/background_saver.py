"""Checkpoints are written in a thread while training goes on, one at a time."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from trainer.checkpoint import Captured, CheckpointStore


@dataclass(frozen=True)
class Saved:
    """What a finished save cost."""

    step: int
    seconds: float
    num_bytes: int
    name: str
    """Of the checkpoint's folder."""


class BackgroundSaver:
    """Saves in a thread while training goes on; one at a time, so that a slow disk is felt and not hidden."""

    def __init__(self, store: CheckpointStore):
        self._store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Saved] | None = None

    def start(self, captured: Captured) -> None:
        """Begin to save. The previous save must have been collected."""
        assert self._running is None
        self._running = self._pool.submit(self._save, captured)

    @property
    def is_running(self) -> bool:
        running = self._running
        return running is not None and not running.done()

    def collect(self, wait: bool) -> Saved | None:
        """The save that has ended since the last call, if any; wait: until there is none under way.

        Raises OSError if it failed.
        """
        if self._running is None or not (wait or self._running.done()):
            return None
        try:
            return self._running.result()
        finally:
            self._running = None

    def _save(self, captured: Captured) -> Saved:
        started = time.perf_counter()
        directory = self._store.save(captured)
        num_bytes = sum(path.stat().st_size for path in directory.iterdir())
        return Saved(captured.step, time.perf_counter() - started, num_bytes, directory.name)
