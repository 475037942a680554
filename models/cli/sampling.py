"""`python -m models sample`: images from a snapshot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from common.checks import check_whole
from models.trained.batches import batch_size_for

if TYPE_CHECKING:
    from models.trained.model import Images

NUM_SHOWN = 100
"""Images in the grid at most."""

SamplerName = Literal["ddpm", "ddim", "dpm-solver++"]
Format = Literal["npz", "grid", "png"]
_DEFAULT_FORMATS: list[Format] = ["npz", "grid"]


def sample(
    snapshot: Path,
    num_images: int = 16,
    seed: int = 0,
    sampler: SamplerName = "ddpm",
    num_sampling_steps: int | None = None,
    eta: float = 0.0,
    first_index: int = 0,
    batch_size: int | None = None,
    device: str = "auto",
    output: Path = Path("samples"),
    format: list[Format] = _DEFAULT_FORMATS,
    tracking_uri: str | None = None,
    step: int | None = None,
) -> None:
    """Generate images from a run, a training checkpoint or a snapshot, with the averaged weights (EMA).

    Writes into the output folder what --format asks for, and sampling.json, which says how the images were made.

    Args:
        snapshot: Directory of a run, a checkpoint or a snapshot, or models:/NAME@ALIAS of an MLflow registry.
        num_images: How many images to generate.
        seed: Image i depends on the seed and i alone.
        sampler: ddpm is the paper's algorithm 2; ddim and dpm-solver++ need far fewer steps.
        num_sampling_steps: How many of the model's timesteps to visit; all by default.
        eta: Noise of ddim, from 0 (deterministic) to 1 (ancestral).
        first_index: Index of the first image, to continue an earlier set.
        batch_size: Images made at a time; bounds the memory, does not change the images. By default fewer, the larger.
        device: auto, cpu, cuda or cuda:0; auto takes a GPU if there is one.
        output: Folder for the results, made if missing.
        format: npz: samples.npz, uint8 array "images" of shape (N, H, W, C); grid: grid.png; png: a file for each,
            named by its index, such as 000012.png. Give it again for each further one.
        tracking_uri: Where the MLflow registry is, for a models:/ name; $MLFLOW_TRACKING_URI if not given.
        step: Take the run's checkpoint of this step; the newest complete one if not given.
    """
    from models.cli.pictures import progress_bar
    from models.samplers import choose_process
    from models.trained.model import load

    check_whole("num_images", num_images, 1)
    loaded = load(snapshot, step, device, tracking_uri)
    process = choose_process(loaded.snapshot.diffusion, sampler, num_sampling_steps)
    num_batches = math.ceil(num_images / batch_size_for(batch_size, loaded.snapshot.model_config))
    drawn: dict[str, Any] = {"seed": seed, "sampler": sampler, "eta": eta, "first_index": first_index}
    with progress_bar("sampling", process.num_steps * num_batches) as advance:
        how = {**drawn, "num_sampling_steps": num_sampling_steps, "batch_size": batch_size}
        images = loaded.sample(num_images, **how, progress=advance)
    record = {
        "snapshot": str(loaded.place),
        "provenance": loaded.snapshot.provenance,
        "num_images": num_images,
        **drawn,
        "timesteps": process.timesteps.tolist(),
    }
    output.mkdir(parents=True, exist_ok=True)
    places = [FORMATS[name](images, first_index, output) for name in dict.fromkeys(format)]
    (output / "sampling.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{len(images)} images: {', '.join(places)}")


def _write_npz(images: Images, first_index: int, folder: Path) -> str:
    import numpy as np

    np.savez_compressed(folder / "samples.npz", images=images)
    return str(folder / "samples.npz")


def _write_grid(images: Images, first_index: int, folder: Path) -> str:
    from models.cli.pictures import write_grid

    write_grid(images[:NUM_SHOWN], folder / "grid.png")
    return str(folder / "grid.png")


def _write_pngs(images: Images, first_index: int, folder: Path) -> str:
    from common.pictures import as_image, write_png

    names = [f"{index:06d}.png" for index in range(first_index, first_index + len(images))]
    for name, image in zip(names, images, strict=True):
        write_png(folder / name, as_image(image))
    return f"{folder / names[0]} to {names[-1]}"


FORMATS: dict[Format, Callable[[Images, int, Path], str]] = {
    "npz": _write_npz,
    "grid": _write_grid,
    "png": _write_pngs,
}
"""How images can be written: (images, index of the first, folder) -> where they are, in words."""
assert FORMATS.keys() == {*get_args(Format)}
