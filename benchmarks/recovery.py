"""Seconds from SIGKILL to the next completed step: of one worker under each launcher, and of the whole run.

    python benchmarks/recovery.py [--rounds 3] [--json FILE]

A run of two workers trains a small network on scikit-learn's digits. Once it has a checkpoint and a step after it, a
process is killed; the clock stops when the next attempt has completed a step, as its ledger tells.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from cluster.storage import complete_directories
from common.command_line import run_script
from data_pipeline.demo.sets import DemoOptions, pack_demo

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 30.0
Launcher = Literal["local", "ray"]


class Run:
    """A run on two workers that goes on until it is stopped."""

    def __init__(self, launcher: Launcher, data: Path, storage: Path):
        self.directory = storage / "run"
        self._command = [
            *(sys.executable, "trainer/main.py", "--preset", "demo", "--launcher", launcher),
            *("--data.path", str(data), "--run.storage", str(storage), "--run.name", "run"),
            *("--workers.num_workers", "2", "--data.ledger", "true"),
            *("--train.num_steps", "1000000", "--checkpoint.every_steps", "10"),
        ]
        self.start()

    def start(self) -> None:
        output = open(self.directory.parent / "log.txt", "a")  # noqa: SIM115 (the process holds it)
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output
        )
        output.close()

    def num_attempts(self) -> int:
        return len(list((self.directory / "ledger").glob("*-rank-0.jsonl")))

    def wait_for_step(self, attempt: int) -> None:
        """Until an attempt has completed its first step: it has recorded the batch of the second."""
        path = self.directory / "ledger" / f"attempt-{attempt:04d}-rank-0.jsonl"
        self._wait(lambda: path.exists() and path.read_bytes().count(b"\n") >= 3)

    def wait_for_checkpoint(self) -> None:
        self._wait(lambda: bool(complete_directories(self.directory / "checkpoints")))

    def kill_worker(self) -> None:
        beat = json.loads((self.directory / "heartbeats" / "rank-1.json").read_text())
        os.kill(beat["pid"], signal.SIGKILL)

    def kill_and_start(self) -> None:
        self.process.kill()
        self.process.wait()
        self.start()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(120)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 180
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory.parent / "log.txt").read_text()[-2000:])
            time.sleep(0.01)


def measure(launcher: Launcher, whole: bool, data: Path, storage: Path) -> float:
    """Seconds from the kill to the next completed step. whole: the launching process is killed, not a worker."""
    run = Run(launcher, data, storage)
    try:
        run.wait_for_checkpoint()
        attempt = run.num_attempts()
        started = time.perf_counter()
        if whole:
            run.kill_and_start()
        else:
            run.kill_worker()
        run.wait_for_step(attempt + 1)
        return time.perf_counter() - started
    finally:
        run.stop()


def main(rounds: int = 3, json_path: str = "") -> None:
    """Measure recovery.

    Args:
        rounds: repetitions, interleaved; the median counts
        json_path: a file for the figures as JSON
    """
    kinds: dict[str, tuple[Launcher, bool]] = {
        "a worker, --launcher local": ("local", False),
        "a worker, --launcher ray": ("ray", False),
        "the launching process, --launcher local": ("local", True),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        pack_demo(DemoOptions("digits"), data)
        for number in range(rounds):
            for place, (kind, (launcher, whole)) in enumerate(kinds.items()):
                storage = Path(folder) / f"{place}-{number}"
                storage.mkdir()
                seconds[kind].append(measure(launcher, whole, data, storage))
    print(f"{'killed':42s} {'median':>8s} {'longest':>8s}   seconds to the next step")
    for kind, values in seconds.items():
        print(f"{kind:42s} {statistics.median(values):8.1f} {max(values):8.1f}")
    figures = {"seconds": seconds, "limit_seconds": LIMIT_SECONDS, "num_cores": os.cpu_count()}
    print(json.dumps(figures))
    if json_path:
        Path(json_path).write_text(json.dumps(figures, indent=2) + "\n")
    if max(max(values) for values in seconds.values()) > LIMIT_SECONDS:
        sys.exit(f"slower than {LIMIT_SECONDS:.0f} s")


if __name__ == "__main__":
    run_script(main)
