"""What the whole system costs: its images per second against a bare loop over the same network with data in memory.

    python benchmarks/training.py [--rounds 2] [--num_steps 100] [--use_gpu true] [--launcher local] [--json_path FILE]

The bare loop is plain PyTorch: random images that lie in memory, noise, loss, gradient, clip, Adam. Ours is the whole
command: Ray, JPEG shards decoded as they stream, EMA, metrics of every step to MLflow, a checkpoint every ten steps.
Both use one worker with one thread (or one GPU); they take turns, and each of ours is compared with the bare loops
around it. From the same run comes by how much checkpoints written in the background lengthen steps. In each round a
second run of ours has an MLflow server that is away from its beginning to its end.
"""

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jsonargparse import auto_cli

from cluster.spool import read_metrics
from data_pipeline.demo import DemoOptions, pack_demo
from models.config import ModelConfig, build_model
from models.diffusion import GaussianDiffusion
from trainer import randomness

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT_STEPS, NUM_WARM_STEPS = 10, 30  # MLflow and Ray are still starting during the first steps
WANTED_RATIO, ALLOWED_STALL = 0.97, 0.20
NOBODY = "http://127.0.0.1:9"  # discard: no MLflow server listens there


class Case(NamedTuple):
    """A network, its batch, and where it trains."""

    model: ModelConfig
    batch: int
    device: str


ON_CPU = Case(
    ModelConfig(
        image_size=32, base_channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, attention_resolutions=(16,)
    ),
    16,
    "cpu",
)
ON_GPU = Case(ModelConfig(image_size=32), 128, "cuda")  # the paper's for CIFAR-10


def bare_loop(case: Case, num_steps: int, results: Any) -> None:
    """Puts into the queue: seconds of each step after the warm ones, seconds that a batch's draws by position take."""
    torch.set_num_threads(1)
    device = torch.device(case.device)
    model, diffusion = build_model(case.model).to(device).train(), GaussianDiffusion()
    adam = torch.optim.Adam(model.parameters(), lr=2e-4)
    batches = torch.rand(8, case.batch, 3, case.model.image_size, case.model.image_size, device=device) * 2 - 1
    seconds = []
    for step in range(num_steps):
        started = time.perf_counter()
        x_0 = batches[step % len(batches)]
        t = torch.randint(0, diffusion.num_timesteps, (case.batch,), device=device)
        loss = diffusion.loss_per_image(model, x_0, t, torch.randn_like(x_0)).mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        adam.step()
        seconds.append(time.perf_counter() - started)
    results.put((seconds[NUM_WARM_STEPS:], seconds_of_draws(case.batch, tuple(batches.shape[2:]), device)))


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


def bare(case: Case, num_steps: int) -> tuple[float, float]:
    """Of the bare loop, in a fresh process: images per second, and the draws by position as a fraction of a step."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=bare_loop, args=(case, num_steps, results))
    process.start()
    seconds, draws = results.get()
    process.join()
    return case.batch * len(seconds) / sum(seconds), draws / statistics.median(seconds)


def ours(
    case: Case, num_steps: int, launcher: str, data: Path, storage: Path, tracking_uri: str = ""
) -> tuple[float, list[float], dict[str, list[float]]]:
    """Images per second and seconds of each step, without the warm ones and the last; the run's metrics."""
    model = [
        part
        for name in ("image_size", "base_channels", "channel_multipliers", "num_res_blocks", "attention_resolutions")
        for part in (f"--model.{name}", json.dumps(getattr(case.model, name)))
    ]
    command = [
        *(sys.executable, "trainer/main.py", "--preset", "cifar10", "--launcher", launcher, *model),
        *("--data.path", str(data), "--run.storage", str(storage), "--run.name", "run"),
        *(
            "--train.num_steps",
            str(num_steps),
            "--train.global_batch_size",
            str(case.batch),
            "--train.log_every_steps",
            "1",
        ),
        *("--checkpoint.every_steps", str(CHECKPOINT_STEPS), "--workers.use_gpu", str(case.device == "cuda").lower()),
        *("--workers.num_workers", "1", "--run.tracking_uri", tracking_uri),
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode:
        sys.exit(finished.stdout[-2000:] + finished.stderr[-2000:])
    metrics = read_metrics(storage / "run")
    steps = metrics["train/step_seconds"][NUM_WARM_STEPS:-1]
    seconds = [value for _, value, _ in steps]
    others = {name: [value for _, value, _ in points] for name, points in metrics.items()}
    return case.batch * len(seconds) / sum(seconds), seconds, others


def longest_stalls(seconds: list[float]) -> tuple[float, float]:
    """How much longer than the median the longest step is of those that follow a checkpoint, and of all others."""
    # The list begins after the warm steps; the checkpoint of step s is taken at its end and written during later ones.
    after, others = [], []
    for number, value in enumerate(seconds, NUM_WARM_STEPS + 1):
        (after if (number - 1) % CHECKPOINT_STEPS in (0, 1, 2) else others).append(value)
    median = statistics.median(seconds)
    return max(after) / median - 1, max(others) / median - 1


def main(
    rounds: int = 2,
    num_steps: int = 100,
    use_gpu: bool = False,
    launcher: Literal["ray", "local"] = "ray",
    json_path: str = "",
) -> None:
    """Compare.

    Args:
        rounds: how many times ours is measured
        num_steps: training steps of each measurement
        use_gpu: the paper's CIFAR-10 network on a GPU; else a smaller one on one core
        launcher: of ours
        json_path: a file for the figures as JSON
    """
    case = ON_GPU if use_gpu else ON_CPU
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        pack_demo(DemoOptions("faces", 32, 2000), data)
        before, draws = bare(case, num_steps)
        for number in range(rounds):
            speed, seconds, metrics = ours(case, num_steps, launcher, data, Path(folder) / str(number))
            away, _, _ = ours(case, num_steps, launcher, data, Path(folder) / f"away-{number}", NOBODY)
            after, draws = bare(case, num_steps)
            stall, other_stall = longest_stalls(seconds)
            row = {
                "bare_images_per_second": (before + after) / 2,
                "ours_images_per_second": speed,
                "ratio": 2 * speed / (before + after),
                "ratio_without_mlflow": 2 * away / (before + after),
                "longest_stall": stall,
                "longest_stall_elsewhere": other_stall,
                "draws_by_position": draws,
                "median_step_seconds": statistics.median(seconds),
                "snapshot_seconds": max(metrics["checkpoint/stall_seconds"]),
                "write_seconds": statistics.median(metrics["checkpoint/seconds"]),
                "data_wait_fraction": statistics.median(metrics["train/data_wait_fraction"]),
            }
            rows.append(row)
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
            before = after
    ratio = statistics.median(row["ratio"] for row in rows)
    stall = statistics.median(row["longest_stall"] for row in rows)
    away = statistics.median(row["ratio_without_mlflow"] for row in rows)
    print(f"ours is {ratio:.3f} of the bare loop (wanted {WANTED_RATIO}), {away:.3f} while MLflow is away;")
    print("a checkpoint lengthens a step by at most")
    print(f"{stall:.1%} of the median step (wanted {ALLOWED_STALL:.0%}); draws by position are {draws:.2%} of a step")
    device = torch.cuda.get_device_name() if use_gpu else f"1 of {os.cpu_count()} cores"
    figures = {"rows": rows, "ratio": ratio, "longest_stall": stall, "device": device, "torch": torch.__version__}
    print(json.dumps(figures))
    if json_path:
        Path(json_path).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
