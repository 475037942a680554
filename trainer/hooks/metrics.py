"""What happens besides training: metrics and checkpoints every so many steps, and an end when the run is another's."""

import logging
import resource
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from cluster.launch import Worker
from cluster.lease import Lease, LostLeaseError
from cluster.spool import Spool
from data_pipeline.loader import Batch, BatchStream
from models.ema import ExponentialMovingAverage
from trainer.checkpoint import BackgroundSaver, CheckpointStore, Saved, capture
from trainer.config.config import Config
from trainer.engines.base import Engine, StepResult
from trainer.hooks.throughput import model_flops_per_image, peak_flops_per_second
from trainer.hooks.window import WindowRecorder
from trainer.objective import Objective

_log = logging.getLogger(__name__)


class MetricsHook:
    """Averages over `train.log_every_steps` steps and all workers, spooled by rank 0."""

    def __init__(
        self,
        config: Config,
        worker: Worker,
        objective: Objective,
        engine: Engine,
        ema: ExponentialMovingAverage,
        stream: BatchStream,
        spool: Spool | None,
        begun: dict[str, Any] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """spool: given on rank 0 alone. begun: the window of the checkpoint that training goes on from."""
        if spool is not None:
            self._flops_per_image = model_flops_per_image(config.model)
            self._peak = worker.world_size * peak_flops_per_second(worker.device, config.train.precision)
        self._config, self._worker = config, worker
        self._engine, self._ema, self._stream, self._spool, self._clock = engine, ema, stream, spool, clock
        self.recorder = WindowRecorder(objective.timesteps, objective.diffusion.num_timesteps, worker.world_size, begun)
        self._num_timed_steps = 0
        self._started, self._waited = clock(), stream.wait_seconds

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        self.recorder.add(batch.counters, result.losses, result.grad_norm)
        self._num_timed_steps += 1
        if step % self._config.train.log_every_steps == 0 or step == self._config.train.num_steps:
            values = self.recorder.take().averages() | self._speed_values()
            if self._spool is not None:
                flops_per_second = values["train/images_per_second"] * self._flops_per_image
                values["train/model_flops_per_second"] = flops_per_second
                values["train/model_flops_fraction_of_peak"] = flops_per_second / self._peak
                values["train/learning_rate"] = self._engine.learning_rate(batch.step)
                values["train/images_seen"] = step * self._config.train.global_batch_size
                values["train/ema_initial_weight_share"] = self._ema.initial_weight_share
                self._spool.metrics(values | _system_values(self._worker.device), step)

    def _speed_values(self) -> dict[str, float]:
        now, waited = self._clock(), self._stream.wait_seconds
        seconds, num_steps = now - self._started, self._num_timed_steps
        values = {
            "train/step_seconds": seconds / num_steps,
            "train/images_per_second": num_steps * self._config.train.global_batch_size / seconds,
            "train/data_wait_fraction": (waited - self._waited) / seconds,
        }
        self._started, self._waited, self._num_timed_steps = now, waited, 0
        return values


class LeaseHook:
    """Ends rank 0 once another process has taken the run over, as after a machine slept: it must write no more.

    Before each commit the lease is checked again; this hook is for what is not committed, such as metrics.
    """

    def __init__(self, lease: Lease, worker: Worker, every_seconds: float = 1.0):
        self._lease, self._rank, self._every_seconds = lease, worker.rank, every_seconds
        self._checked = time.monotonic()

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        now = time.monotonic()
        if self._rank == 0 and now - self._checked > self._every_seconds:
            self._checked = now
            self._lease.check()


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


def _system_values(device: torch.device) -> dict[str, float]:
    values = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/worker_peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "system/memory_percent": psutil.virtual_memory().percent,
    }
    if device.type == "cuda":
        values["system/gpu_peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return values
