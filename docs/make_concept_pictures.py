"""Draw the pictures of docs/concepts.md with a trained snapshot and images of its size.

    python docs/make_concept_pictures.py SNAPSHOT IMAGES [--output docs/pictures]

SNAPSHOT: directory of a snapshot or checkpoint, such as the last one of `make demo`. IMAGES: a folder of images, a
packed data set, or an .npz or .npy file, as `python -m models likelihood` takes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.command_line import run_script
from models import philox
from models.cli.image_files import read_batches
from models.config import DiffusionConfig
from models.diffusion import GaussianDiffusion
from models.generation import interpolate, progressive, variations
from models.likelihood import BITS, variational_bound
from models.samplers import to_uint8
from models.snapshot import Snapshot, load_snapshot

SEED = 0
NUM_ROWS = 4
CELL_INCHES = 0.75


def main(snapshot: Path, images: Path, output: Path = Path("docs/pictures")) -> None:
    """Draw all pictures.

    Args:
        snapshot: Directory of a snapshot or checkpoint.
        images: Folder, packed data set, .npz or .npy with images of the model's size.
        output: Directory of the pictures.
    """
    loaded = load_snapshot(snapshot)
    batch = next(read_batches(images, loaded.model_config.image_shape, 64, 64))
    x_0 = torch.from_numpy(batch).float() / 127.5 - 1.0
    output.mkdir(parents=True, exist_ok=True)
    draw_schedules(output / "concepts-schedules.png")
    draw_noising(loaded, x_0[:NUM_ROWS], output / "concepts-noising.png")
    draw_denoising(loaded, output / "concepts-denoising.png")
    draw_interpolation(loaded, x_0, output / "concepts-interpolation.png")
    draw_variations(loaded, x_0[0], output / "concepts-variations.png")
    draw_bound(loaded, x_0, output / "concepts-bound.png")


def draw_schedules(file: Path) -> None:
    """What is left of the image, and of the noise, under both schedules."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    for axes, schedule in zip(figure.subplots(1, 2, sharey=True), ("linear", "cosine"), strict=True):
        diffusion = GaussianDiffusion(DiffusionConfig(schedule=schedule))
        axes.plot(diffusion.sqrt_alphas_cumprod, label="image")
        axes.plot(diffusion.sqrt_one_minus_alphas_cumprod, label="noise")
        axes.set_title(schedule, fontsize=10)
        axes.set_xlabel("timestep t")
    figure.axes[0].set_ylabel("weight in x_t")
    figure.axes[0].legend(frameon=False)
    figure.savefig(file, dpi=110)


def draw_noising(snapshot: Snapshot, x_0: torch.Tensor, file: Path) -> None:
    """Equation 4: the same image and noise at several timesteps."""
    timesteps = [0, 50, 100, 200, 300, 500, 750, 999]
    noise = philox.normal(SEED, "pictures/noise", torch.arange(len(x_0)), x_0.shape[1:])
    columns = [x_0] + [snapshot.diffusion.q_sample(x_0, torch.full((len(x_0),), t), noise) for t in timesteps]
    draw_rows(torch.stack(columns, dim=1), ["x_0", *(f"t = {t}" for t in timesteps)], file)


def draw_denoising(snapshot: Snapshot, file: Path) -> None:
    """Algorithm 2 from inside: x_t above, the network's estimate of x_0 below."""
    run = progressive(snapshot.model, snapshot.diffusion, torch.arange(2), SEED, every=125)
    rows = torch.stack([row for image in range(2) for row in (run.x_t[image], run.x_0[image])])
    labels = [f"t = {timestep}" for timestep in run.timesteps]
    draw_rows(rows, labels, file, ["x_t", "estimate"] * 2)


def draw_interpolation(snapshot: Snapshot, x_0: torch.Tensor, file: Path) -> None:
    """Figure 8: two images at the ends, mixtures denoised from several depths between."""
    weights = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    timesteps = [50, 250, 500, 750]
    rows = []
    for timestep in timesteps:
        first, second = x_0[0:1], x_0[1:2]
        mixed = interpolate(
            snapshot.model, snapshot.diffusion, first, second, weights, torch.tensor([0]), SEED, timestep
        )
        rows.append(torch.cat((first, mixed[0], second)))
    labels = ["first", *(f"{weight:.1f}" for weight in weights), "second"]
    draw_rows(torch.stack(rows), labels, file, [f"t = {timestep}" for timestep in timesteps])


def draw_variations(snapshot: Snapshot, x_0: torch.Tensor, file: Path) -> None:
    """Figure 7: images from one shared x_t, the deeper the less alike."""
    timesteps = [100, 250, 500, 999]
    rows = [variations(snapshot.model, snapshot.diffusion, x_0, 8, SEED, timestep) for timestep in timesteps]
    draw_rows(torch.stack(rows), [""] * 8, file, [f"t = {timestep}" for timestep in timesteps])


def draw_bound(snapshot: Snapshot, x_0: torch.Tensor, file: Path) -> None:
    """Where the bits are: each term of the bound, and the rate-distortion curve."""
    bound = variational_bound(snapshot.model, snapshot.diffusion, x_0, torch.arange(len(x_0)), SEED)
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.semilogy(bound.terms.mean(dim=0)[1:] / BITS)
    left.set_xlabel("timestep t")
    left.set_ylabel("L_t (nats/dim)")
    right.plot(bound.rate.mean(dim=0), bound.distortion)
    right.set_xlabel("rate (bits/dim)")
    right.set_ylabel("distortion (RMSE, levels)")
    figure.savefig(file, dpi=110)


def draw_rows(rows: torch.Tensor, labels: Sequence[str], file: Path, names: Sequence[str] = ()) -> None:
    """Images (R, N, C, H, W) in [-1, 1] as a table with a label over each column and a name before each row."""
    num_rows, num_columns = rows.shape[:2]
    figure = Figure(figsize=(CELL_INCHES * num_columns + 0.6, (CELL_INCHES + 0.05) * num_rows + 0.3))
    grid = figure.subplots(num_rows, num_columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    pixels = to_uint8(rows).permute(0, 1, 3, 4, 2).numpy()
    for (row, column), axes in np.ndenumerate(grid):
        image = pixels[row, column]
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        if row == 0:
            axes.set_title(labels[column], fontsize=8)
        if column == 0 and names:
            axes.set_ylabel(names[row], fontsize=8)
    figure.savefig(file, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    run_script(main)
