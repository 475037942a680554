"""A run, an evaluator and an MLflow server, one of whose processes is killed every 20 to 60 seconds.

    python benchmarks/soak.py [--minutes 15] [--seed 0] [--launcher ray] [--json-path FILE]

What a supervisor would start again is started again. At the end the run is compared with the same run left in peace:
losses and weights to the bit, each sample, evaluation and point in MLflow once (`soak_check.py`). Also printed: the
share of the time that trained. A worker is killed, the launching process, the evaluator, MLflow, under Ray the raylet.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import psutil

from benchmarks.soak_check import differences, trained_share
from cluster.run_directory import HEARTBEATS, newest_step
from cluster.tracking.spool import read_metrics
from common.code import ROOT
from common.command_line import run_script
from common.files import read_json
from data_pipeline.demo.sets import DemoOptions, pack_demo

PROTOCOL = "fd_efficientnet_lite0_20_ddim4"
_SMALL = (
    *("--preset", "demo", "--workers.num_workers", "2", "--workers.max_failures", "-1", "--data.ledger", "true"),
    *("--model.channel_multipliers", "[1]", "--model.attention_resolutions", "[8]", "--train.log_every_steps", "1"),
    *("--train.global_batch_size", "12", "--allow-long-cpu-run"),
)
_OPEN_END = "1000000"
_PACE = "step.before:again:delay=0.1"
_REFUSED = 2
"""The exit code of a command that would be refused again."""
_STEPS_AFTER = 5
"""Steps that the run makes in peace at the end."""


class Kept:
    """A command that is started again whenever it has ended."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None):
        self._command, self._log, self._environment = command, log, environment or {}
        self.num_starts = 0
        self.process: subprocess.Popen[bytes]
        self.keep()

    def keep(self) -> None:
        if self.num_starts and (code := self.process.poll()) is None:
            return
        if self.num_starts and code == _REFUSED:
            raise RuntimeError(f"{' '.join(self._command)} is refused: {self._log.read_text()[-2000:]}")
        self.num_starts += 1
        with open(self._log, "a") as output:
            self.process = subprocess.Popen(
                [sys.executable, *self._command],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", **self._environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def end(self, number: signal.Signals = signal.SIGTERM, seconds: float = 180.0) -> int:
        """Signal it, wait for it, and kill what it leaves. Returns its exit code."""
        left = self.descendants()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            for process in [self.process, *left]:
                with _gone():
                    process.kill()


class Soak:
    """The three commands, and the choice of what is killed."""

    def __init__(self, folder: Path, launcher: str, seed: int):
        self._folder, self._random = folder, random.Random(seed)
        self.data, self.storage = folder / "data", folder / "runs"
        self.storage.mkdir()
        pack_demo(DemoOptions("digits", num_images=40), self.data)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{port}"
        store = ("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1")
        served = ("--host", "127.0.0.1", "--port", port, "--default-artifact-root", str(folder / "artifacts"))
        self.training = ["trainer/main.py", *_SMALL, "--launcher", launcher, "--data.path", str(self.data)]
        self.training += ["--checkpoint.every_steps", "50", "--run.storage", str(self.storage)]
        tracked = ["--run.name", "run", "--run.tracking_uri", self.uri]
        self.tracked_training = [*self.training, *tracked]
        self.evaluation = ["-m", "eval", "serve", str(self.storage), "--protocol", PROTOCOL]
        self.mlflow = Kept(["-m", "mlflow", "server", *store, *served], folder / "mlflow.txt")
        self.evaluator = Kept(self.evaluation, folder / "evaluator.txt")
        self.launcher = Kept(
            [*self.tracked_training, "--train.num_steps", _OPEN_END], folder / "run.txt", {"RAYDDPM_FAULT": _PACE}
        )
        self._left: list[str] = []
        self.targets = ["worker", "launcher", "evaluator", "mlflow", *(["raylet"] if launcher == "ray" else [])]

    @property
    def directory(self) -> Path:
        return self.storage / "run"

    def keep(self) -> None:
        for kept in (self.mlflow, self.evaluator, self.launcher):
            kept.keep()

    def kill_one(self) -> str:
        """Its kind, each once before any again; "none" where nothing of those that are left is alive."""
        self._left = self._left or self._random.sample(self.targets, len(self.targets))
        for kind in self._left:
            if victims := self._victims(kind):
                for process in victims:
                    with _gone():
                        process.kill()
                self._left.remove(kind)
                return kind
        return "none"

    def _victims(self, kind: str) -> list[psutil.Process]:
        if kind == "launcher":  # what it started must end by itself
            return [psutil.Process(self.launcher.process.pid)] if self.launcher.process.poll() is None else []
        if kind in ("evaluator", "mlflow"):
            kept = getattr(self, kind)
            return [psutil.Process(kept.process.pid), *kept.descendants()] if kept.process.poll() is None else []
        below = self.launcher.descendants()
        if kind == "raylet":
            return [process for process in below if process.name() == "raylet"]
        beats = sorted((self.directory / HEARTBEATS).glob("rank-*.json"))
        pids = {read_json(path)["pid"] for path in beats}
        workers = sorted((process for process in below if process.pid in pids), key=lambda process: process.pid)
        return [self._random.choice(workers)] if workers else []

    def finish(self) -> int:
        """Stop the run and finish it in peace, evaluate and send the rest. Returns its number of steps."""
        self.launcher.end()
        # Some of them may be lost, and are made again: the run was stopped while it was starting.
        num_steps = read_metrics(self.directory)["train/loss"][-1][0] + _STEPS_AFTER
        self.mlflow.keep()
        self._run("run.txt", *self.tracked_training, "--train.num_steps", str(num_steps))
        self.evaluator.end()
        self._run("evaluator.txt", *self.evaluation, "--until-finished")
        self._run("upload.txt", "-m", "cluster", "upload", str(self.directory))
        unbroken = ("--run.name", "unbroken", "--train.num_steps", str(num_steps))
        self._run("unbroken.txt", *self.training, *unbroken)
        return num_steps

    def end(self) -> None:
        for kept in (self.launcher, self.evaluator, self.mlflow):
            kept.end(signal.SIGKILL)

    def _run(self, log: str, *command: str) -> None:
        kept = Kept(list(command), self._folder / log)
        if kept.process.wait(600):
            raise RuntimeError(f"{' '.join(command)} failed: {(self._folder / log).read_text()[-2000:]}")


class _gone:  # noqa: N801 (reads as a statement)
    """A process that ended by itself needs no signal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, psutil.NoSuchProcess | ProcessLookupError)


def soak(folder: Path, minutes: float, seed: int, launcher: str, pauses: tuple[float, float]) -> dict[str, Any]:
    """The figures, among them what differs from the unbroken run; [] is what is aimed at."""
    system = Soak(folder, launcher, seed)
    choice, killed = random.Random(seed), Counter[str]()
    started = time.monotonic()
    due = started + choice.uniform(*pauses)
    try:
        while time.monotonic() < started + 60 * minutes:
            system.keep()
            if time.monotonic() > due:
                killed[kind := system.kill_one()] += 1
                print(f"{time.monotonic() - started:6.0f} s, step {newest_step(system.directory)}: {kind}", flush=True)
                due = time.monotonic() + choice.uniform(*pauses)
            time.sleep(0.1)
        system.launcher.end()
        share = trained_share(system.directory, time.monotonic() - started)
        num_steps = system.finish()
        found = differences(system.directory, system.storage / "unbroken", system.data, num_steps, system.uri)
    finally:
        system.end()
    starts = {name: getattr(system, name).num_starts for name in ("launcher", "evaluator", "mlflow")}
    return {"steps": num_steps, "killed": killed, "starts": starts, "trained_share": share, "differences": found}


def main(
    minutes: float = 15.0,
    seed: int = 0,
    launcher: Literal["local", "ray"] = "local",
    least_seconds: float = 20.0,
    most_seconds: float = 60.0,
    folder: str = "",
    json_path: str = "",
) -> None:
    """Kill, start again, compare.

    Args:
        minutes: how long processes are killed
        seed: of what is killed, and when
        launcher: of the run
        least_seconds: shortest pause between two kills
        most_seconds: longest pause between two kills
        folder: an empty folder that keeps runs and logs; a temporary one if not given
        json_path: a file for the figures as JSON
    """
    with tempfile.TemporaryDirectory() as temporary:
        figures = soak(Path(folder or temporary), minutes, seed, launcher, (least_seconds, most_seconds))
    print(json.dumps(figures))
    if json_path:
        Path(json_path).write_text(json.dumps(figures, indent=2) + "\n")
    if figures["differences"]:
        sys.exit("not the run it would have been")


if __name__ == "__main__":
    run_script(main)
