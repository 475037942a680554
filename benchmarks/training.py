"""What the whole system costs: its images per second against a bare loop over the same network with data in memory.

    python benchmarks/training.py [--num-turns 20] [--use-gpu] [--launcher local] [--json-path FILE]

The bare loop is plain PyTorch: random images that lie in memory, noise, loss, gradient, clip, Adam. Ours is the whole
command: Ray, JPEG shards decoded as they stream, EMA, metrics of every step to MLflow, a checkpoint every 25 steps. A
second one of ours has an MLflow server that is away all the time. Each trains with one worker of one thread (or on the
GPU), at the same constant rate. All three are started, then take turns of a few seconds: the processes of the others
are stopped meanwhile, so that a machine that changes its speed changes it for all. Steps that a stop interrupts do not
count, nor does the beginning of a turn, in which a score of Ray's processes catch up with what fell due while they
were stopped. From the same steps comes by how much checkpoints written in the background lengthen them.
"""

import itertools
import json
import math
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import torch

from cluster.tracking.spool import read_metrics
from common.command_line import run_script
from data_pipeline.demo.sets import DemoOptions, pack_demo
from models.config import ModelConfig
from models.diffusion import GaussianDiffusion
from models.networks.table import build_model
from models.precision import use_tf32
from trainer import randomness

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT_STEPS, NUM_WARM_STEPS = 25, 30  # MLflow and Ray are still starting during the first steps
LEARNING_RATE = 2e-4
SETTLING_SECONDS, TURN_SECONDS = 2.0, 6.0
WANTED_RATIO, ALLOWED_STALL = 0.97, 0.20
NOBODY = "http://127.0.0.1:9"  # discard: no MLflow server listens there


class Case(NamedTuple):
    """A network, its batch, and where it trains."""

    model: ModelConfig
    batch: int
    device: str
    precision: str = "fp32"


ON_CPU = Case(
    ModelConfig(
        image_size=32, base_channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, attention_resolutions=(16,)
    ),
    16,
    "cpu",
)
ON_GPU = Case(ModelConfig(image_size=32), 128, "cuda", "tf32")  # the paper's for CIFAR-10


class Step(NamedTuple):
    """A training step: its number from 1, the wall-clock times between which it ran."""

    number: int
    started: float
    ended: float


class Contestant:
    """A process that trains, with all that it started. It can be stopped, and woken for a turn."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._turns: list[tuple[float, float]] = []

    def send(self, number: signal.Signals) -> None:
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def take_turn(self) -> None:
        self.send(signal.SIGCONT)
        time.sleep(SETTLING_SECONDS)
        started = time.time()
        time.sleep(TURN_SECONDS)
        self._turns.append((started, time.time()))
        self.send(signal.SIGSTOP)

    def undisturbed(self, steps: list[Step]) -> list[list[Step]]:
        """Turn by turn, those that began and ended within it."""
        return [[s for s in steps if begin < s.started and s.ended < end] for begin, end in self._turns]


def bare_loop(case: Case, warm: Any, end: Any, results: Any) -> None:
    """Trains until `end`; then puts its steps into the queue, and the seconds that a batch's draws by position take."""
    torch.set_num_threads(1)
    use_tf32(case.precision == "tf32")
    device = torch.device(case.device)
    model, diffusion = build_model(case.model).to(device).train(), GaussianDiffusion()
    adam = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    batches = torch.rand(8, case.batch, 3, case.model.image_size, case.model.image_size, device=device) * 2 - 1
    steps: list[Step] = []
    while not end.is_set():
        started = time.time()
        x_0 = batches[len(steps) % len(batches)]
        t = torch.randint(0, diffusion.num_timesteps, (case.batch,), device=device)
        loss = diffusion.loss_per_image(model, x_0, t, torch.randn_like(x_0)).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        adam.step()
        steps.append(Step(len(steps) + 1, started, time.time()))
        if len(steps) == NUM_WARM_STEPS:
            warm.set()
    results.put((steps, seconds_of_draws(case.batch, tuple(batches.shape[2:]), device)))


def seconds_of_draws(batch: int, shape: tuple[int, ...], device: torch.device) -> float:
    """Flips, timesteps and noise of a batch as functions of seed and sample counter, the median of some tries."""
    counters = torch.arange(batch, device=device)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        randomness.flips(0, counters)
        randomness.timesteps(0, counters, 1000)
        randomness.noise(0, counters, shape, torch.float32)[0, 0, 0, 0].item()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


class Bare:
    """The bare loop in a process of its own."""

    def __init__(self, case: Case) -> None:
        context = multiprocessing.get_context("spawn")
        self._warm, self._end, self._results = context.Event(), context.Event(), context.Queue()
        self._process = context.Process(target=bare_loop, args=(case, self._warm, self._end, self._results))

    @contextmanager
    def training(self) -> Iterator[Contestant]:
        """Stopped after its warm steps."""
        self._process.start()
        contestant = Contestant(self._process.pid or 0)
        self._warm.wait()
        contestant.send(signal.SIGSTOP)
        try:
            yield contestant
        finally:
            contestant.send(signal.SIGKILL)

    def end(self, contestant: Contestant) -> tuple[list[Step], float]:
        """Its steps, and the seconds of a batch's draws by position."""
        self._end.set()
        contestant.send(signal.SIGCONT)
        found: tuple[list[Step], float] = self._results.get()
        return found


@contextmanager
def ours(case: Case, launcher: str, data: Path, directory: Path, tracking_uri: str = "") -> Iterator[Contestant]:
    """The command that trains the run `directory`, stopped after its warm steps; in the end it is asked to end."""
    model = [
        part
        for name in ("image_size", "base_channels", "channel_multipliers", "num_res_blocks", "attention_resolutions")
        for part in (f"--model.{name}", json.dumps(getattr(case.model, name)))
    ]
    command = [
        *(sys.executable, "trainer/main.py", "--preset", "cifar10", "--launcher", launcher, *model),
        *("--data.path", str(data), "--run.storage", str(directory.parent), "--run.name", directory.name),
        *("--train.num_steps", "1000000", "--train.global_batch_size", str(case.batch)),
        *("--train.log_every_steps", "1", "--checkpoint.every_steps", str(CHECKPOINT_STEPS)),
        *("--optim.warmup_steps", "0", "--optim.learning_rate", str(LEARNING_RATE)),
        *("--optim.clip_scope", "global", "--train.precision", case.precision),
        *("--workers.use_gpu", str(case.device == "cuda").lower(), "--workers.num_workers", "1"),
        *("--run.tracking_uri", tracking_uri),
    ]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        contestant = Contestant(process.pid)
        try:
            while len(steps_of(directory)) < NUM_WARM_STEPS:
                if process.poll() is not None:
                    output.seek(0)
                    sys.exit(output.read().decode()[-4000:])
                time.sleep(0.5)
            contestant.send(signal.SIGSTOP)
            yield contestant
        finally:
            if process.poll() is None:
                contestant.send(signal.SIGCONT)
                process.terminate()
                process.wait()


def steps_of(directory: Path) -> list[Step]:
    """The steps that a run has logged."""
    points = read_metrics(directory).get("train/step_seconds", [])
    return [Step(step, ended - seconds, ended) for step, seconds, ended in points]


def images_per_second(case: Case, steps: list[Step]) -> float:
    return case.batch * len(steps) / sum(step.ended - step.started for step in steps)


def flat(turns: list[list[Step]]) -> list[Step]:
    return list(itertools.chain.from_iterable(turns))


def ratio(case: Case, turns: list[list[Step]], bare_turns: list[list[Step]]) -> tuple[float, float]:
    """Of the images per second in all turns together; and its standard error, from the ratios of single rounds."""
    whole = images_per_second(case, flat(turns)) / images_per_second(case, flat(bare_turns))
    rounds = [
        images_per_second(case, turn) / images_per_second(case, bare)
        for turn, bare in zip(turns, bare_turns, strict=True)
        if turn and bare
    ]
    return whole, statistics.stdev(rounds) / math.sqrt(len(rounds))


def stalls(steps: list[Step]) -> dict[str, float]:
    """How much longer than the median of all steps those are that follow a checkpoint, and all others.

    "stall" is the longest of the medians of the first, second and third step after a checkpoint, which a machine's
    chance does not change; "longest" are single steps.
    """
    # The checkpoint of step s is taken at its end and written during later ones.
    after: dict[int, list[float]] = {1: [], 2: [], 3: []}
    others: list[float] = []
    for step in steps:
        after.get(step.number % CHECKPOINT_STEPS, others).append(step.ended - step.started)
    following = [seconds for column in after.values() for seconds in column]
    median = statistics.median(following + others)
    return {
        "stall": max(statistics.median(column) for column in after.values() if column) / median - 1,
        "longest_stall": max(following) / median - 1,
        "longest_elsewhere": max(others) / median - 1,
        "num_steps_after_checkpoints": len(following),
    }


def main(
    num_turns: int = 20,
    use_gpu: bool = False,
    launcher: Literal["ray", "local"] = "ray",
    json_path: str = "",
) -> None:
    """Compare.

    Args:
        num_turns: of 6 s, which each of the three gets
        use_gpu: the paper's CIFAR-10 network on a GPU; else a smaller one on one core
        launcher: of ours
        json_path: a file for the figures as JSON
    """
    case = ON_GPU if use_gpu else ON_CPU
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        data, with_mlflow, without = (Path(folder) / name for name in ("data", "with", "without"))
        pack_demo(DemoOptions("faces", 32, 2000), data)
        bare = Bare(case)
        contestants = [
            stack.enter_context(bare.training()),
            stack.enter_context(ours(case, launcher, data, with_mlflow)),
            stack.enter_context(ours(case, launcher, data, without, NOBODY)),
        ]
        for turn in range(num_turns):
            # There and back again, so that a machine that grows slower or faster favours nobody.
            for contestant in contestants if turn % 2 == 0 else reversed(contestants):
                contestant.take_turn()
        metrics = read_metrics(with_mlflow)
        bare_steps, seconds_of_draws = bare.end(contestants[0])
        all_steps = bare_steps, steps_of(with_mlflow), steps_of(without)
        counted = [c.undisturbed(steps) for c, steps in zip(contestants, all_steps, strict=True)]
    whole, error = ratio(case, counted[1], counted[0])
    without_mlflow, _ = ratio(case, counted[2], counted[0])
    bare_steps, our_steps, steps_without_mlflow = (flat(turns) for turns in counted)
    found = stalls(our_steps)
    median = statistics.median(step.ended - step.started for step in our_steps)
    figures = {
        "bare_images_per_second": images_per_second(case, bare_steps),
        "ours_images_per_second": images_per_second(case, our_steps),
        "ratio": whole,
        "ratio_standard_error": error,
        "ratio_without_mlflow": without_mlflow,
        **found,
        "num_steps": [len(bare_steps), len(our_steps), len(steps_without_mlflow)],
        "draws_by_position": seconds_of_draws / median,
        "median_step_seconds": median,
        "snapshot_seconds": max(value for _, value, _ in metrics["checkpoint/stall_seconds"]),
        "data_wait_fraction": statistics.median(value for _, value, _ in metrics["train/data_wait_fraction"]),
        "device": torch.cuda.get_device_name() if use_gpu else f"1 of {os.cpu_count()} cores",
        "torch": torch.__version__,
    }
    print(f"ours is {whole:.3f} ± {error:.3f} of the bare loop (wanted {WANTED_RATIO}),", end=" ")
    print(f"{without_mlflow:.3f} while MLflow is away;")
    print(f"a checkpoint lengthens the steps after it by {found['stall']:.1%} of the median step", end=" ")
    print(f"(wanted {ALLOWED_STALL:.0%}), at most by {found['longest_stall']:.1%}, chance others", end=" ")
    print(f"by {found['longest_elsewhere']:.1%}; draws by position are {figures['draws_by_position']:.2%} of a step")
    print(json.dumps(figures))
    if json_path:
        Path(json_path).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
