"""The trainer's command line in processes that may die."""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from cluster.storage import complete_directories
from data_pipeline.ledger import Audit, audit
from data_pipeline.storage.shards import open_dataset
from tests.support.failures.processes import CONTEXT, settle
from tests.support.trainer import final_weights, losses
from trainer.command import main

TINY = [
    *("--preset", "demo", "--launcher", "local", "--workers.num_workers", "1", "--workers.step_timeout_seconds", "30"),
    *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
    *("--train.num_steps", "8", "--train.global_batch_size", "12", "--train.log_every_steps", "1"),
    *("--checkpoint.every_steps", "2", "--data.ledger", "true"),
]


@dataclass(frozen=True)
class Ended:
    """How a command ended. code: negative for a signal."""

    code: int
    output: str


class Running:
    """`python trainer/main.py ARGUMENTS` in a process of its own, already started."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        environment: dict[str, str],
        prepare: Callable[[], object] | None = None,
    ):
        """folder: where its output is kept. prepare: called in the process first."""
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"log-{time.monotonic_ns()}.txt"
        self.process: BaseProcess = CONTEXT.Process(
            target=_command_line, args=(arguments, {**os.environ, **environment}, str(self._log), prepare)
        )
        self._log.touch()
        self.process.start()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        """What still runs, because a test failed, is killed."""
        self.process.kill()
        self.process.join()

    @property
    def output(self) -> str:
        return self._log.read_text()

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, seconds: float = 600.0) -> Ended:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s: {self.output[-2000:]}"
        return Ended(self.process.exitcode, self.output)


def run(folder: Path, *arguments: str, **environment: str) -> Ended:
    """The command to its end. folder: where its output is kept."""
    with Running(folder, list(arguments), environment) as running:
        return running.wait()


def wait_for(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def audited(directory: Path, data: Path, num_steps: int) -> Audit:
    """The run's ledger, found to hold every sample of its steps once."""
    with open_dataset(data) as dataset:
        return audit(directory / "ledger", dataset, num_steps)


def assert_same_run(directory: Path, unbroken: Path, data: Path, num_steps: int) -> None:
    """Every sample once, and losses, weights, average and moments equal to the bit."""
    audited(directory, data, num_steps)
    assert losses(directory) == losses(unbroken)
    assert len(losses(directory)) == num_steps
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        found, expected = final_weights(directory, file), final_weights(unbroken, file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), file


def checkpoint_names(directory: Path) -> list[str]:
    return [path.name[:13] for path in complete_directories(directory / "checkpoints")]


def _command_line(
    arguments: list[str], environment: dict[str, str], log: str, prepare: Callable[[], object] | None
) -> None:
    settle(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if prepare is not None:
        prepare()
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
