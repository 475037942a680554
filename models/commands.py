"""The commands behind `python -m models`, as plain functions. Their docstrings are the help texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

SamplerName = Literal["ddpm", "ddim", "dpm-solver++"]


def sample(
    snapshot: Path,
    num_images: int = 16,
    seed: int = 0,
    sampler: SamplerName = "ddpm",
    num_sampling_steps: int | None = None,
    eta: float = 0.0,
    first_index: int = 0,
    batch_size: int = 64,
    device: str = "auto",
    output: Path = Path("samples"),
) -> None:
    """Generate images from a snapshot or a training checkpoint.

    Writes samples.npz (uint8 array "images" of shape (N, H, W, C)), grid.png and sampling.json.

    Args:
        snapshot: Directory of a snapshot or of a training checkpoint.
        num_images: How many images to generate.
        seed: Image i depends on the seed and i alone.
        sampler: ddpm is the paper's algorithm 2; ddim and dpm-solver++ need far fewer steps.
        num_sampling_steps: How many of the model's timesteps to visit; all by default.
        eta: Noise of ddim, from 0 (deterministic) to 1 (ancestral).
        first_index: Index of the first image, to continue an earlier set.
        batch_size: Images made at a time; bounds the memory, does not change the images.
        device: auto, cpu, cuda or cuda:0; auto takes a GPU if there is one.
        output: Directory for the results, made if missing.
    """
    import numpy as np
    import torch

    from models import images
    from models.samplers import choose_process, to_uint8
    from models.samplers import sample as generate
    from models.snapshot import load_snapshot

    _at_least("num_images", num_images, 1)
    _at_least("batch_size", batch_size, 1)
    _at_least("first_index", first_index, 0)
    loaded = load_snapshot(snapshot, choose_device(device))
    process = choose_process(loaded.diffusion, sampler, num_sampling_steps)
    batches = torch.arange(first_index, first_index + num_images).split(batch_size)
    made = []
    with images.progress_bar("sampling", process.num_steps * len(batches)) as advance:
        for batch in batches:
            x_0 = generate(loaded.model, process, batch, seed, sampler, eta=eta, progress=lambda done, total: advance())
            made.append(to_uint8(x_0).permute(0, 2, 3, 1).cpu().numpy())
    result = np.concatenate(made)
    output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(output / "samples.npz", images=result)
    images.write_grid(result, output / "grid.png")
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
    (output / "sampling.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{num_images} images in {output / 'samples.npz'}, shown in {output / 'grid.png'}")


def inspect(snapshot: Path) -> None:
    """Show what a snapshot is: architecture, parameters, diffusion, provenance; checks that the weights are whole.

    Args:
        snapshot: Directory of a snapshot or of a training checkpoint.
    """
    from models.snapshot import load_snapshot

    loaded = load_snapshot(snapshot)
    num_parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    config, diffusion = loaded.model_config, loaded.diffusion_config
    report = {
        "num_parameters": num_parameters,
        "model": vars(config),
        "diffusion": vars(diffusion),
        "alphas_cumprod_at_T": float(loaded.diffusion.alphas_cumprod[-1]),
        "provenance": loaded.provenance,
    }
    print(json.dumps(report, indent=2))


def choose_device(name: str) -> torch.device:
    """The device of a name, or with auto a GPU if there is one. Raises ValueError if it does not exist."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is {name!r}: choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, but this machine has {torch.cuda.device_count()} GPUs: use auto or cpu")
    return device


def _at_least(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise ValueError(f"{name} is {value}: it must be at least {lowest}")
