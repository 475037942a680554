"""Small runs for the trainer's tests: a data set of 40 digits, a network of one level, a few steps."""

import ctypes
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cluster.launch import Resources, Worker, launch_local
from cluster.storage import complete_directories
from cluster.tracking.spool import read_metrics
from common.code import ROOT
from data_pipeline.demo.sets import DemoOptions, pack_demo
from models.config import ModelConfig
from tests.support.failures.processes import in_new_process
from trainer.config.config import Config
from trainer.config.plan import Plan, plan
from trainer.config.presets import PRESETS
from trainer.run import close_run, open_run, run_lease
from trainer.worker import train_worker

TINY_MODEL = ModelConfig(
    image_size=8,
    image_channels=1,
    base_channels=32,
    channel_multipliers=(1,),
    num_res_blocks=1,
    attention_resolutions=(8,),
    dropout=0.0,
)

# Attention adds the key bias to all logits of a row alike: its true gradient is 0, and Adam turns the rounding noise
# that is left of it into steps of full size.
NO_GRADIENT = ("key.bias",)


def digits(folder: Path, num_images: int = 40) -> Path:
    pack_demo(DemoOptions("digits", num_images=num_images), folder)
    return folder


def tiny_config(data: Path, storage: Path, name: str, **sections: dict[str, Any]) -> Config:
    """The demo preset made tiny; sections: field values by section name, over it."""
    base = PRESETS["demo"]()
    defaults: dict[str, dict[str, Any]] = {
        "data": {"path": str(data), "horizontal_flip": True},
        "optim": {"warmup_steps": 2},
        "train": {"num_steps": 6, "global_batch_size": 12, "log_every_steps": 1},
        "checkpoint": {"every_steps": 2},
        "run": {"storage": str(storage), "name": name},
        "workers": {"num_workers": 1},
    }
    changed = {
        section: dataclasses.replace(getattr(base, section), **(defaults.get(section, {}) | sections.get(section, {})))
        for section in defaults | sections
    }
    return dataclasses.replace(base, model=TINY_MODEL, **changed)


def train_locally(
    config: Config, function: Callable[[Worker, str], None] = train_worker, force_changes: bool = False
) -> Plan:
    """The run as `--launcher local` does it, without the uploader; several workers: from a process of its own."""
    if config.workers.num_workers > 1:
        return in_new_process(_train, config, function, force_changes)
    return _train(config, function, force_changes)


def _train(config: Config, function: Callable[[Worker, str], None], force_changes: bool) -> Plan:
    planned = plan(config, "tiny")
    workers = planned.config.workers
    with run_lease(planned.directory) as lease:
        open_run(planned, lease, force_changes)
        worker = partial(function, lease=dataclasses.replace(lease)) if function is train_worker else function
        launch_local(worker, planned.directory, Resources(workers.num_workers, False, 1, 0, 60), lease.check)
        close_run(planned, lease, "FINISHED")
    return planned


def losses(directory: Path) -> list[float]:
    return [value for _, value, _ in read_metrics(directory)["train/loss"]]


def final_weights(directory: Path, file: str = "ema.safetensors") -> dict[str, torch.Tensor]:
    return load_file(complete_directories(directory / "checkpoints")[-1] / file)


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python trainer/main.py ...` as a user types it."""
    return subprocess.run(
        [sys.executable, "trainer/main.py", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def signal_another_thread(pid: int, number: signal.Signals) -> None:
    """Send a process a signal that the kernel hands to any of its threads but the main one, as it may.

    It is the system call that is behind os.kill; Python has it for its own process alone.
    """
    tid = next(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir() if int(path.name) != pid)
    assert ctypes.CDLL(None).tgkill(pid, tid, int(number)) == 0
