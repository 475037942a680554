"""Jobs for engines on any number of workers, each done when its results are asked for.

A group of workers is started for each number once and does one job after the other, since to start it takes seconds.
"""

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cluster.launch import Resources, Worker, launch_local
from common.files import read_json, write_json_atomic
from data_pipeline.loader import Batch
from models.diffusion import GaussianDiffusion
from models.ema import ExponentialMovingAverage
from models.networks.table import build_model
from tests.support.failures.processes import CONTEXT, settle
from tests.support.trainer import TINY_MODEL, tiny_config
from trainer.config.config import Config, from_dict, to_dict
from trainer.engines.base import Engine, NonFiniteError
from trainer.engines.table import make_engine
from trainer.engines.zero import ZeroEngine
from trainer.objective import Objective

# Twice as many channels as normalisation groups: with one channel a group, the biases before it have no gradient.
MODEL = dataclasses.replace(TINY_MODEL, channel_multipliers=(2,), attention_resolutions=())
_STATE_KINDS = ("model", "optimizer", "ema")
_POLL_SECONDS, _JOB_SECONDS = 0.01, 600.0
_UNUSED = Path("/unused")


@dataclasses.dataclass(frozen=True)
class Job:
    """Steps [start, stop) of one engine. resume_from: the job whose state it begins with.

    follow_ema: average the gathered weights as well, in the ordinary way. poisoned_rank: its losses are NaN at the
    last step; what the engine then holds is written as the job's state, and what it held before as that of NAME.before.
    """

    num_workers: int
    config: Config
    start: int = 0
    stop: int = 20
    resume_from: str = ""
    follow_ema: bool = False
    poisoned_rank: int = -1


def job_config(strategy: str, **sections: dict[str, Any]) -> Config:
    """13 images per step, so that no number of workers divides them; no warm-up, so every step moves the weights."""
    defaults: dict[str, dict[str, Any]] = {
        "train": {"global_batch_size": 13, "num_steps": 100},
        "optim": {"warmup_steps": 0, "learning_rate": 2e-4},
        "ema": {"decay": 0.9999, "warmup": False},
    }
    model = dataclasses.replace(MODEL, **sections.pop("model", {}))
    merged = {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    config = tiny_config(_UNUSED, _UNUSED, "unused", workers={"strategy": strategy}, **merged)
    return dataclasses.replace(config, model=model)


class Jobs:
    """Jobs by name, and what they left: each is done when it is first asked for, after the one that it resumes from."""

    def __init__(self, folder: Path, jobs: Mapping[str, Job]):
        self._folder, self._jobs = folder, jobs
        self._groups: dict[int, _Group] = {}

    def results(self, name: str, rank: int = 0) -> dict[str, Any]:
        """`losses` and `norms` of its steps, `num_elements_held`, and `error` if it ended with one."""
        return json.loads((self._done(name) / f"{name}.{rank}.json").read_text())

    def state(self, name: str, kind: str) -> dict[str, Tensor]:
        """kind: `model`, `optimizer` or `ema`, or `ordinary` where the job follows it. name: NAME, or NAME.before."""
        return load_file(self._done(name.removesuffix(".before")) / f"{name}.{kind}.safetensors")

    def close(self) -> None:
        for group in self._groups.values():
            group.close()

    def _done(self, name: str) -> Path:
        """The folder, once the job has ended."""
        job = self._jobs[name]
        if not (self._folder / f"{name}.{job.num_workers - 1}.json").exists():
            if job.resume_from:
                self._done(job.resume_from)
            group = self._groups.get(job.num_workers) or _Group(self._folder, job.num_workers)
            self._groups[job.num_workers] = group
            group.do(name, job)
        return self._folder


class _Group:
    """Workers that do what is written into `FOLDER/workers-NUMBER/`, in its turn."""

    def __init__(self, folder: Path, num_workers: int):
        self._orders = folder / f"workers-{num_workers}"
        self._orders.mkdir()
        self._num_orders = 0
        # Not in this process, where the group that an engine makes for itself would stay.
        self._process: BaseProcess = CONTEXT.Process(target=_launch, args=(self._orders, num_workers, dict(os.environ)))
        self._process.start()

    def do(self, name: str, job: Job) -> None:
        done = self._write({**dataclasses.asdict(job), "config": to_dict(job.config)}, name)
        deadline = time.monotonic() + _JOB_SECONDS
        while not done.exists():
            assert self._process.is_alive(), f"the workers of {name} have died; see what they wrote"
            assert time.monotonic() < deadline, f"{name} does not end"
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        if self._process.is_alive():
            self._write({}, "")
        self._process.join()

    def _write(self, fields: dict[str, Any], name: str) -> Path:
        """The next order, and the path that exists when it is done."""
        path = self._orders / f"{self._num_orders}.json"
        write_json_atomic(path, {"name": name, "job": fields})
        self._num_orders += 1
        return path.with_suffix(".done")


def _launch(orders: Path, num_workers: int, environment: dict[str, str]) -> None:
    settle(environment)
    if num_workers == 1:
        _work(Worker(0, 1, torch.device("cpu")), str(orders))
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed  # noqa: F401 (once, before the workers are forked)

        launch_local(_work, orders, Resources(num_workers, False, 1, 0, 60))


def _work(worker: Worker, orders: str) -> None:
    for number in itertools.count():
        path = Path(orders) / f"{number}.json"
        while not path.exists():
            time.sleep(_POLL_SECONDS)
        order = read_json(path)
        if not order["name"]:
            return
        config = from_dict(order["job"]["config"])
        _run(worker, Path(orders).parent, order["name"], Job(**{**order["job"], "config": config}))
        if worker.rank == 0:
            path.with_suffix(".done").touch()


class _Poisoned(Objective):
    """Losses are NaN from a sample counter on."""

    first_counter: int

    def losses(self, model: nn.Module, images: Tensor, counters: Tensor) -> Tensor:
        losses = super().losses(model, images, counters)
        return losses * float("nan") if counters.min() >= self.first_counter else losses


def _engine_for(job: Job, worker: Worker) -> Engine:
    config = job.config
    torch.manual_seed(config.train.seed)
    dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
    model = build_model(config.model).to(dtype)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            # The zeros that training begins with would make most gradients of the first step zero.
            nn.init.normal_(parameter, std=0.05)
    kind = _Poisoned if worker.rank == job.poisoned_rank else Objective
    objective = kind(GaussianDiffusion(config.diffusion), config.train.seed, True, dtype)
    if isinstance(objective, _Poisoned):
        object.__setattr__(objective, "first_counter", (job.stop - 1) * config.train.global_batch_size)
    if config.workers.strategy == "zero3":
        # By default small weights stay whole, and the tiny network has no others.
        return ZeroEngine(model, objective, config, worker, num_whole_elements=2000)
    return make_engine(model, objective, config, worker)


def _batch(step: int, worker: Worker, config: Config) -> Batch:
    """This worker's slices of a global batch of images that depend on the step alone."""
    size = config.train.global_batch_size
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8, generator=generator)
    counters = torch.arange(step * size, (step + 1) * size)
    own = torch.arange(size).view(-1, config.slice_images).tensor_split(worker.world_size)[worker.rank].flatten()
    return Batch(step, counters[own], images[own])


def _run(worker: Worker, folder: Path, name: str, job: Job) -> None:
    engine = _engine_for(job, worker)
    ema = engine.make_ema(job.config.ema)
    initial = engine.model_state() if job.follow_ema else {}
    ordinary = ExponentialMovingAverage(initial, job.config.ema.decay, job.config.ema.warmup)
    if job.resume_from:
        model, optimizer, average = (
            load_file(folder / f"{job.resume_from}.{kind}.safetensors") for kind in _STATE_KINDS
        )
        engine.load_state(model, optimizer)
        ema.load_named_state(average, job.start, job.config.ema.decay)
    found: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(job.start, job.stop):
        if job.poisoned_rank >= 0 and step == job.stop - 1:
            _save(worker, folder, f"{name}.before", engine, ema)
        try:
            result = engine.step(_batch(step, worker, job.config))
        except NonFiniteError as error:
            found["error"] = str(error)
            break
        ema.update()
        if job.follow_ema:
            ordinary.update(engine.model_state().values())
        found["losses"].append(_global_mean(result.losses, worker, job.config))
        found["norms"].append(result.grad_norm.item())
    found["num_elements_held"] = sum(p.numel() for p in engine.module.parameters())
    _save(worker, folder, name, engine, ema)
    if worker.rank == 0 and job.follow_ema:
        save_file(ordinary.named_state(), folder / f"{name}.ordinary.safetensors")
    (folder / f"{name}.{worker.rank}.json").write_text(json.dumps(found))
    if worker.world_size > 1:
        dist.barrier()  # rank 0 says that it is done when all have written


def _global_mean(losses: Tensor, worker: Worker, config: Config) -> float:
    total = losses.double().sum()
    if worker.world_size > 1:
        dist.all_reduce(total)
    return total.item() / config.train.global_batch_size


def _save(worker: Worker, folder: Path, name: str, engine: Engine, ema: ExponentialMovingAverage) -> None:
    states = (engine.model_state(), engine.optimizer_state(), ema.named_state())
    if worker.rank == 0:
        for kind, tensors in zip(_STATE_KINDS, states, strict=True):
            save_file(tensors, folder / f"{name}.{kind}.safetensors")
