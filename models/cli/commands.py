"""The commands behind `python -m models`, as plain functions. Their docstrings are the help texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from common.checks import check_whole
from common.command_line import CommandLine, run
from models.cli.sampling import sample
from models.cli.strips import interpolate, noise, progressive, variations
from models.trained.batches import batch_size_for


def inspect(snapshot: Path, tracking_uri: str | None = None, step: int | None = None) -> None:
    """Show what a snapshot is: architecture, parameters, diffusion, provenance; checks that the weights are whole.

    Args:
        snapshot: Directory of a run, a checkpoint or a snapshot, or models:/NAME@ALIAS of an MLflow registry.
        tracking_uri: Where the MLflow registry is, for a models:/ name; $MLFLOW_TRACKING_URI if not given.
        step: Take the run's checkpoint of this step; the newest complete one if not given.
    """
    from models.trained.model import load

    model = load(snapshot, step, "cpu", tracking_uri)
    loaded = model.snapshot
    config, diffusion = loaded.model_config, loaded.diffusion_config
    report = {
        "num_parameters": model.num_parameters,
        "model": vars(config),
        "diffusion": vars(diffusion),
        "alphas_cumprod_at_T": float(loaded.diffusion.tables.alphas_cumprod[-1]),
        "provenance": loaded.provenance,
    }
    print(json.dumps(report, indent=2))


def likelihood(
    snapshot: Path,
    data: Path,
    num_images: int | None = None,
    num_sampling_steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    output: Path | None = None,
    tracking_uri: str | None = None,
    step: int | None = None,
) -> None:
    """Bound the negative log-likelihood of images, in bits per dimension, with its terms.

    Prints one JSON object: the mean bound with its standard error over images, and its parts. With an output
    directory also likelihood.json, with every timestep's term and the rate-distortion curve, and that curve's plot.

    Args:
        snapshot: Directory of a run, a checkpoint or a snapshot, or models:/NAME@ALIAS of an MLflow registry.
        data: Folder of images of the model's size, or .npz or .npy of uint8 (N, H, W, C).
        num_images: How many images to use, from the first; all by default.
        num_sampling_steps: Bound the shorter chain that visits this many evenly spaced timesteps; all by default.
        seed: Noise of image i depends on the seed and i alone.
        batch_size: Images measured at a time; bounds the memory. By default fewer, the larger they are.
        device: auto, cpu, cuda or cuda:0; auto takes a GPU if there is one.
        output: Directory for likelihood.json and rate_distortion.png, made if missing.
        tracking_uri: Where the MLflow registry is, for a models:/ name; $MLFLOW_TRACKING_URI if not given.
        step: Take the run's checkpoint of this step; the newest complete one if not given.
    """
    import torch

    from models import likelihood_report
    from models.cli import image_files
    from models.cli.pictures import progress_bar
    from models.likelihood import variational_bound
    from models.pixels import from_uint8
    from models.samplers import choose_process
    from models.trained.model import load

    if num_images is not None:
        check_whole("num_images", num_images, 1)
    loaded = load(snapshot, step, device, tracking_uri).snapshot
    process = choose_process(loaded.diffusion, "ddpm", num_sampling_steps)
    bounds = []
    first_index = 0
    num_at_once = batch_size_for(batch_size, loaded.model_config)
    for batch in image_files.read_batches(data, loaded.model_config.image_shape, num_at_once, num_images):
        indices = torch.arange(first_index, first_index + len(batch))
        first_index += len(batch)
        x_0 = from_uint8(torch.from_numpy(batch))
        with progress_bar(f"images {int(indices[0])} to {first_index - 1}", process.num_steps) as advance:
            bounds.append(variational_bound(loaded.model, process, x_0, indices, seed, progress=advance))
    report = likelihood_report.summary(bounds)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        likelihood_report.write(output, report, bounds, process.timesteps.tolist())
    print(json.dumps(report, indent=2))


def export_snapshot(
    snapshot: Path,
    dest: Path,
    format: Literal["diffusers", "pesser", "annotated"] = "diffusers",
    tracking_uri: str | None = None,
    step: int | None = None,
) -> None:
    """Convert a snapshot for another program.

    Args:
        snapshot: Directory of a run, a checkpoint or a snapshot, or models:/NAME@ALIAS of an MLflow registry.
        dest: For diffusers a directory that DDPMPipeline.from_pretrained loads; otherwise a state-dict file.
        format: diffusers; pesser, the names of pesser/pytorch_diffusion; or annotated, the labml.ai tutorial's.
        tracking_uri: Where the MLflow registry is, for a models:/ name; $MLFLOW_TRACKING_URI if not given.
        step: Take the run's checkpoint of this step; the newest complete one if not given.
    """
    from models.convert.tables import EXPORTS
    from models.trained.model import load

    EXPORTS[format](load(snapshot, step, "cpu", tracking_uri).snapshot, dest)
    print(f"wrote {dest} ({format})")


def import_snapshot(
    source: Path,
    dest: Path,
    format: Literal["diffusers", "annotated", "pesser"] = "diffusers",
    image_size: int | None = None,
) -> None:
    """Convert weights of another program to a snapshot.

    Args:
        source: For diffusers a pipeline's or UNet2DModel's directory; otherwise a state-dict file.
        dest: Directory of the new snapshot, made if missing.
        format: diffusers, such as google/ddpm-cifar10-32; annotated, the labml.ai tutorial; pesser/pytorch_diffusion.
        image_size: Height of the images in pixels, where the weights do not tell it.
    """
    from models.convert.tables import IMPORTS
    from models.snapshot import write_snapshot

    imported = IMPORTS[format](source, image_size)
    provenance = {"imported_from": str(source), "format": format}
    write_snapshot(dest, imported.tensors, imported.model, imported.diffusion, provenance)
    print(f"wrote {dest}")


COMMAND_LINE = CommandLine(
    prog="python -m models",
    description="Sample from trained diffusion models, measure their likelihood, convert and inspect them.",
    commands={
        "sample": sample,
        "interpolate": interpolate,
        "variations": variations,
        "progressive": progressive,
        "noise": noise,
        "inspect": inspect,
        "likelihood": likelihood,
        "export": export_snapshot,
        "import": import_snapshot,
    },
    examples=(
        "sample runs/NAME --num-images 64 --sampler ddim --num-sampling-steps 50",
        "interpolate runs/NAME --images one.jpg --images other.jpg",
        "progressive runs/NAME --animation samples/progressive.gif",
        "likelihood snapshot data/photos --num-images 512",
        "export snapshot out --format diffusers",
    ),
    interrupted=dict.fromkeys(
        ("sample", "interpolate", "variations", "progressive", "noise", "likelihood", "export", "import"),
        "interrupted; nothing was written, the same command starts anew",
    ),
    # Threads that spin while they wait make small networks several times slower on a machine that is busy with other
    # work. Read by the OpenMP runtime when torch is first imported.
    environment={"OMP_WAIT_POLICY": "PASSIVE"},
)


def main(arguments: Sequence[str], prog: str | None = None) -> int:
    """Exit code: 0 done, 2 a user's error, 130 interrupted."""
    return run(COMMAND_LINE, arguments, prog)
