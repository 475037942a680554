"""`python -m models sample`: images from a snapshot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.checks import check_whole
from models.cli.batches import batch_size_for
from models.cli.checkpoints import checkpoint_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from models.diffusion import GaussianDiffusion

NUM_SHOWN = 100
"""Images in the grid at most."""

SamplerName = Literal["ddpm", "ddim", "dpm-solver++"]


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
    tracking_uri: str | None = None,
    step: int | None = None,
) -> None:
    """Generate images from a run, a training checkpoint or a snapshot, with the averaged weights (EMA).

    Writes samples.npz (uint8 array "images" of shape (N, H, W, C)), grid.png and sampling.json.

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
        output: Directory for the results, made if missing.
        tracking_uri: Where the MLflow registry is, for a models:/ name; $MLFLOW_TRACKING_URI if not given.
        step: Take the run's checkpoint of this step; the newest complete one if not given.
    """
    import torch

    from models.cli.device import choose_device
    from models.cli.registry_uri import open_snapshot
    from models.samplers import choose_process

    check_whole("num_images", num_images, 1)
    check_whole("first_index", first_index, 0)
    if eta and sampler != "ddim":
        raise ValueError(f"eta is {eta}, but only the sampler ddim has it: leave it out for {sampler}")
    loaded = open_snapshot(snapshot := checkpoint_of(snapshot, step), choose_device(device), tracking_uri)
    process = choose_process(loaded.diffusion, sampler, num_sampling_steps)
    num_at_once = batch_size_for(batch_size, loaded.model_config)
    batches = torch.arange(first_index, first_index + num_images).split(num_at_once)
    images = _generate(loaded.model, process, batches, seed, sampler, eta)
    record = {
        "snapshot": str(snapshot),
        "provenance": loaded.provenance,
        "num_images": num_images,
        "first_index": first_index,
        "seed": seed,
        "sampler": sampler,
        "timesteps": process.timesteps.tolist(),
        "eta": eta,
    }
    _write_samples(images, record, output)


def _generate(
    model: nn.Module, process: GaussianDiffusion, batches: Sequence[Tensor], seed: int, sampler: str, eta: float
) -> np.ndarray:
    """The images of all batches of indices, (N, H, W, C) uint8, with progress on stderr."""
    import torch

    from models.cli.pictures import progress_bar
    from models.pixels import to_uint8
    from models.samplers import sample

    made = []
    with progress_bar("sampling", process.num_steps * len(batches)) as advance:
        for batch in batches:
            x_0 = sample(model, process, batch, seed, sampler, eta=eta, progress=advance)
            made.append(to_uint8(x_0).permute(0, 2, 3, 1).cpu())
    return torch.cat(made).numpy()


def _write_samples(images: np.ndarray, record: dict[str, Any], directory: Path) -> None:
    import numpy as np

    from models.cli.pictures import write_grid

    directory.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(directory / "samples.npz", images=images)
    write_grid(images[:NUM_SHOWN], directory / "grid.png")
    (directory / "sampling.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{len(images)} images in {directory / 'samples.npz'}, shown in {directory / 'grid.png'}")
