"""What a GPU gets through: training steps of the paper's networks, and samples from the one for CIFAR-10.

    python benchmarks/gpu.py [--num-steps 40] [--json-path FILE]

Training is the whole command (drawn faces streamed, EMA, metrics) on one GPU without Ray; its own metrics are read, the
median of those after the first ten steps. Sampling is DDIM with the network alone, as an evaluation does it.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cluster.tracking.spool import read_metrics
from common.command_line import run_script
from data_pipeline.demo.sets import DemoOptions, pack_demo
from models.config import ModelConfig
from models.diffusion import GaussianDiffusion
from models.networks.table import build_model, eval_mode
from models.precision import use_tf32
from models.samplers import sample

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES = {32: 1000, 256: 128}
NUM_WARM_STEPS, EVERY_STEPS = 10, 5
NUM_SAMPLING_STEPS = 20
METRICS = {
    "images/s": "train/images_per_second",
    "of the peak": "train/model_flops_fraction_of_peak",
    "waits for data": "train/data_wait_fraction",
    "GiB": "system/gpu_peak_memory_gib",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A preset, its images' size, and what is changed in it."""

    preset: str
    image_size: int
    precision: str
    compile: bool = False
    clip_scope: str = "slice"
    strategy: str = "ddp"

    def command(self, data: Path, storage: Path, num_steps: int) -> list[str]:
        return [
            *(sys.executable, "trainer/main.py", "--preset", self.preset, "--launcher", "local"),
            *("--data.path", str(data), "--run.storage", str(storage), "--run.name", "run"),
            *("--train.num_steps", str(num_steps), "--train.log_every_steps", str(EVERY_STEPS)),
            *("--train.precision", self.precision, "--workers.compile", json.dumps(self.compile)),
            *("--workers.num_workers", "1", "--workers.use_gpu", "true", "--workers.strategy", self.strategy),
            *("--optim.clip_scope", self.clip_scope),
        ]


CASES = (
    Case("cifar10", 32, "fp32"),
    Case("cifar10", 32, "tf32"),
    Case("cifar10", 32, "bf16"),
    Case("cifar10", 32, "bf16", clip_scope="global"),
    Case("cifar10", 32, "bf16", clip_scope="global", compile=True),
    Case("cifar10", 32, "bf16", clip_scope="global", strategy="zero2"),
    Case("celebahq256", 256, "tf32"),
    Case("celebahq256", 256, "bf16"),
    Case("celebahq256", 256, "bf16", compile=True),
)


def train(case: Case, data: Path, num_steps: int) -> dict[str, Any]:
    """Its metrics; or, where it fails, how, so that the other cases are still measured."""
    with tempfile.TemporaryDirectory() as storage:
        command = case.command(data, Path(storage), num_steps)
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if ended.returncode:
            return {"error": ended.returncode, "output": ended.stderr[-2000:]}
        metrics = read_metrics(Path(storage) / "run")
    return {
        name: statistics.median(value for step, value, _ in metrics[key] if step > NUM_WARM_STEPS)
        for name, key in METRICS.items()
    }


def sampling(batch: int, precision: str, compiled: bool) -> float:
    """How many images the network evaluates at one timestep a second."""
    use_tf32(precision == "tf32")
    network: Any = build_model(ModelConfig()).cuda()
    model = torch.compile(network, dynamic=False) if compiled else network
    diffusion, indices = GaussianDiffusion(), torch.arange(batch, device="cuda")
    with eval_mode(network), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        sample(model, diffusion, indices, 0, "ddim", 2, shape=(3, 32, 32))
        torch.cuda.synchronize()
        started = time.perf_counter()
        sample(model, diffusion, indices, 0, "ddim", NUM_SAMPLING_STEPS, shape=(3, 32, 32))
        torch.cuda.synchronize()
        return batch * NUM_SAMPLING_STEPS / (time.perf_counter() - started)


def main(num_steps: int = 40, json_path: str = "") -> None:
    """Measure, and print as it goes.

    Args:
        num_steps: of each training run, of which the first ten do not count
        json_path: a file for the figures as JSON
    """
    found: list[dict[str, Any]] = []

    def report(row: dict[str, Any]) -> None:
        found.append(row)
        print(json.dumps(row), flush=True)
        if json_path:
            Path(json_path).write_text(json.dumps(found, indent=2) + "\n")

    report({"device": torch.cuda.get_device_name(), "torch": torch.__version__})
    for batch, precision, compiled in ((64, "fp32", False), (64, "bf16", False), (256, "bf16", False)):
        rate = sampling(batch, precision, compiled)
        report({"sampling": batch, "precision": precision, "compiled": compiled, "evaluations/s": rate})
    with tempfile.TemporaryDirectory() as folder:
        for image_size, num_images in NUM_IMAGES.items():
            pack_demo(DemoOptions("faces", image_size, num_images), Path(folder) / str(image_size))
        for case in CASES:
            report({**dataclasses.asdict(case), **train(case, Path(folder) / str(case.image_size), num_steps)})
    rate = sampling(256, "bf16", compiled=True)
    report({"sampling": 256, "precision": "bf16", "compiled": True, "evaluations/s": rate})


if __name__ == "__main__":
    run_script(main)
