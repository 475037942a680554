"""Metrics: averages over some steps, speed, and what the machine is at, for MLflow."""

import resource
import time
from collections.abc import Callable

import psutil
import torch

from cluster.launch import Worker
from cluster.tracking.spool import Spool
from data_pipeline.loader import Batch, BatchStream
from models.ema import ExponentialMovingAverage
from trainer.config.config import Config
from trainer.engines.base import Engine, StepResult
from trainer.hooks.throughput import Peak, model_flops_per_image
from trainer.hooks.window import WindowRecorder


class MetricsHook:
    """Averages over `train.log_every_steps` steps and all workers, spooled by rank 0."""

    def __init__(
        self,
        config: Config,
        worker: Worker,
        engine: Engine,
        ema: ExponentialMovingAverage,
        stream: BatchStream,
        recorder: WindowRecorder,
        spool: Spool | None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """recorder: given each step here, and emptied with each logged one. spool: given on rank 0 alone."""
        if spool is not None:
            self._flops_per_image = model_flops_per_image(config.model)
            self._peak = Peak(worker, config.train.precision)
        self._config, self._worker = config, worker
        self._engine, self._ema, self._stream, self._spool, self._clock = engine, ema, stream, spool, clock
        self._recorder = recorder
        self._num_timed_steps = 0
        self._started, self._waited = clock(), stream.wait_seconds

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        self._recorder.add(batch.counters, result.losses, result.grad_norm)
        self._num_timed_steps += 1
        if step % self._config.train.log_every_steps == 0 or step == self._config.train.num_steps:
            values = self._recorder.take().averages() | self._speed_values()
            if self._spool is not None:
                flops_per_second = values["train/images_per_second"] * self._flops_per_image
                values["train/model_flops_per_second"] = flops_per_second
                values["train/model_flops_fraction_of_peak"] = self._peak.fraction(flops_per_second)
                values["train/learning_rate"] = self._engine.learning_rate(batch.step)
                values["train/images_seen"] = step * self._config.train.global_batch_size
                values["train/ema_initial_weight_share"] = self._ema.initial_weight_share
                values["system/num_workers"] = self._worker.world_size
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


def _system_values(device: torch.device) -> dict[str, float]:
    values = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/worker_peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "system/memory_percent": psutil.virtual_memory().percent,
    }
    if device.type == "cuda":
        values["system/gpu_peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return values
