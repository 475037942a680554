"""Runs as training leaves them, made in a moment: a packed data set, a tiny model, committed checkpoints."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.storage import commit_directory
from cluster.tracking.uploader import Spool, default_tracking_uri
from common.files import write_json_atomic
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.sources.source import ArraySource
from data_pipeline.storage.manifest import load_manifest
from eval.backlog import Job, Selection, jobs_of_run
from eval.protocol import Protocol, parse_protocol
from eval.service.runner import Runner
from eval.settings import EvaluationSettings
from models.config import DiffusionConfig, ModelConfig
from models.networks.table import build_model
from models.snapshot import write_snapshot

MODEL = ModelConfig(
    image_size=4, image_channels=1, base_channels=32, channel_multipliers=(1,), num_res_blocks=1,
    attention_resolutions=(), dropout=0.0,
)  # fmt: skip
DIFFUSION = DiffusionConfig(num_timesteps=20)
SETTINGS = EvaluationSettings(device="cpu", num_threads=1, block_images=8, num_bootstrap=4)
PROTOCOL = parse_protocol("fd_efficientnet_lite0_20_ddim4")


def runner(settings: EvaluationSettings = SETTINGS, **options: Any) -> Runner:
    """An evaluator that leaves its points in the spool: making an MLflow database takes seconds."""
    return Runner(settings, upload=lambda run_directory: None, **options)


def job_of(run: Path, protocol: Protocol = PROTOCOL) -> Job:
    """The evaluation of a run's newest checkpoint."""
    return jobs_of_run(run, [protocol], Selection())[0]


def make_data(folder: Path, num_images: int = 60) -> Path:
    images = np.random.default_rng(0).integers(0, 256, size=(num_images, 4, 4), dtype=np.uint8)
    pack(ArraySource(images), folder, PackOptions(samples_per_shard=25))
    return folder


def make_run(storage: Path, name: str = "run-a", steps: tuple[int, ...] = (100, 200), finished: bool = True) -> Path:
    """A run directory below `storage`, its data beside it; checkpoints differ, so that their numbers do."""
    data = storage.parent / "data"
    if not (data / "manifest.json").exists():
        make_data(data)
    directory = storage / name
    directory.mkdir(parents=True)
    config = {
        "data": {"path": str(data)},
        "model": asdict(MODEL),
        "diffusion": asdict(DIFFUSION),
        "train": {"num_steps": max(steps), "global_batch_size": 32, "seed": 0},
    }
    run = {
        "run": name,
        "uid": f"uid-of-{name}",
        "config": config,
        "config_digest": "c0ffee" * 10,
        "manifest_digest": load_manifest(data).digest,
        "num_steps": max(steps),
        "num_parameters": 12345,
        "tracking_uri": default_tracking_uri(storage),
        "experiment": "tests",
        "git_commit": "unknown",
        "versions": {"torch": torch.__version__},
    }
    write_json_atomic(directory / "run.json", run)
    for step in steps:
        make_checkpoint(directory, step)
    spool = Spool(directory, "train")
    for step in range(10, max(steps) + 1, 10):
        spool.metrics({"train/loss": 1 / step, "train/images_per_second": 100.0}, step)
    spool.close()
    if finished:
        write_json_atomic(directory / "FINISHED.json", {"step": max(steps)})
    return directory


def make_checkpoint(directory: Path, step: int, attempt: str = "aaaa") -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(step)
        model = build_model(MODEL)
        # The output layer starts at zero, which would make all checkpoints predict the same.
        tensors = {key: value + 0.05 * torch.randn_like(value) for key, value in model.named_parameters()}
    provenance = {"step": step, "ema": {"initial_weight_share": 0.25}}

    def write(folder: Path) -> None:
        write_snapshot(folder, tensors, MODEL, DIFFUSION, provenance)

    return commit_directory(directory / "checkpoints", f"step-{step:08d}-{attempt}", write, {"step": step})


def made_up_result(job: Job, status: str = "done", **fields: Any) -> dict[str, Any]:
    """A result file's content for a job that nobody worked on."""
    number = {"value": 1.0} if status == "done" else {}
    described = {"checkpoint": job.checkpoint.name, "step": job.step, "protocol": job.protocol.describe()}
    return {"status": status, **described, **number, **fields}
