"""When checkpoints are made: every `checkpoint.every_steps` steps, after the last, and on request."""

import logging
import time

from cluster.lease import LostLeaseError
from cluster.tracking.spool import Spool
from data_pipeline.loader import Batch
from models.ema import ExponentialMovingAverage
from trainer.background_saver import BackgroundSaver, Saved
from trainer.checkpoint import CheckpointStore, capture
from trainer.config.config import Config
from trainer.engines.base import Engine, StepResult
from trainer.hooks.window import WindowRecorder

_log = logging.getLogger(__name__)


class CheckpointHook:
    """A checkpoint every `checkpoint.every_steps` steps and after the last, written while training goes on."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        ema: ExponentialMovingAverage,
        recorder: WindowRecorder,
        store: CheckpointStore,
        spool: Spool | None,
    ):
        """spool: given on rank 0 alone, which writes."""
        self._config, self._engine, self._ema, self._recorder, self._spool = config, engine, ema, recorder, spool
        self._store, self._saver = store, BackgroundSaver(store)
        self._last_step = 0

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        self._report(self._saver.collect(wait=False))
        last = step == self._config.train.num_steps
        if last or step % self._config.checkpoint.every_steps == 0:
            self.save(step, wait=last)

    def save(self, step: int, wait: bool) -> None:
        """Checkpoint the state after `step` updates, unless that is done. Collective. wait: until it is committed."""
        if step == self._last_step:
            self._report(self._saver.collect(wait=wait))
            return
        self._last_step = step
        self._store.faults("save.capture", step)
        started = time.perf_counter()
        captured = capture(step, self._engine, self._ema, self._recorder.window())
        if self._spool is None:
            return
        self._report(self._saver.collect(wait=True))
        self._spool.metrics({"checkpoint/stall_seconds": time.perf_counter() - started}, step)
        self._saver.start(captured)
        if wait:
            self._report(self._saver.collect(wait=True))

    def close(self) -> None:
        """Let a checkpoint that is being written become whole. No metrics of it: the run may be another's by now."""
        try:
            self._saver.collect(wait=True)
        except (OSError, LostLeaseError) as error:
            _log.error("the checkpoint of step %d was not written: %s", self._last_step, error)

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written now; asked by another thread."""
        return self._saver.is_running

    def _report(self, saved: Saved | None) -> None:
        if saved is not None and self._spool is not None:
            self._spool.checkpoint(saved.step, saved.name)
            self._spool.metrics({"checkpoint/seconds": saved.seconds, "checkpoint/bytes": saved.num_bytes}, saved.step)
