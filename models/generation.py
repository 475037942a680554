"""What the paper shows besides samples: progressive generation, interpolation, sets from one latent (section 4).

`indices`, `seed`, `sampler`, `num_sampling_steps`, `eta`, `clip_x_0`, `progress` and `shape` are those of
models.samplers.sample in every function; results lie on the network's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.checks import check_whole
from models import philox
from models.diffusion import GaussianDiffusion, NoiseModel
from models.networks.table import image_shape, place
from models.samplers import Progress, Step, choose_process, denoise_from

INTERPOLATION_STREAM = "generation/interpolation"
VARIATION_STREAM = "generation/variation"


@dataclass(frozen=True)
class Trajectory:
    """A sampling run seen from inside: the N steps recorded on the way, noisiest first, and where it ended.

    timesteps: N original timesteps in [0, T). x_t and x_0: (B, N, C, H, W) float32, the noisy images at those
    timesteps and the network's estimates of the clean ones. images: (B, C, H, W) float32, the result.
    """

    timesteps: list[int]
    x_t: Tensor
    x_0: Tensor
    images: Tensor


def progressive(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    indices: Tensor,
    seed: int,
    every: int = 50,
    sampler: str = "ddpm",
    num_sampling_steps: int | None = None,
    eta: float = 0.0,
    clip_x_0: bool = True,
    progress: Progress | None = None,
    *,
    shape: Sequence[int] | None = None,
) -> Trajectory:
    """Progressive generation, section 4.3 and figure 6: sample, and keep every `every`-th step's estimate of x_0.

    The images are those of samplers.sample. Steps are counted from the end, so that the last, whose estimate is
    the image itself under ddpm, is always kept. Raises ValueError if every < 1, and as sample does.
    """
    check_whole("every", every, 1, hint="the paper's figure uses 50")
    process = choose_process(diffusion, sampler, num_sampling_steps)
    kept: list[Step] = []

    def keep(step: Step) -> None:
        if step.position % every == 0:
            kept.append(step)

    indices = place(model, indices)
    x_T = philox.normal(seed, "sampler/x_T", indices, shape or image_shape(model))  # noqa: N806
    images = denoise_from(model, process, x_T, indices, seed, sampler, eta, clip_x_0, progress, keep)
    return Trajectory(
        timesteps=[int(process.timesteps[step.position]) for step in kept],
        x_t=torch.stack([step.x_t for step in kept], dim=1),
        x_0=torch.stack([step.x_0 for step in kept], dim=1),
        images=images,
    )


def interpolate(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    x_0_first: Tensor,
    x_0_second: Tensor,
    weights: Sequence[float],
    indices: Tensor,
    seed: int,
    timestep: int | None = None,
    sampler: str = "ddpm",
    clip_x_0: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Interpolation, section 4.4 and figure 8: mix two images after diffusing both to `timestep`, then denoise.

    x_0_first, x_0_second: (B, C, H, W) float in [-1, 1]. weights: the N values of lambda in [0, 1]; 0 is the first
    image. indices: (B,) int64, which noise each pair gets: the same for all its weights, as in the paper.
    timestep: original, in [0, T); T / 2 by default, the paper's 500; the tutorial uses 100. The mixture is
    denoised from that same timestep. Returns (B, N, C, H, W) in the images' dtype. Raises ValueError out of these
    ranges.
    """
    if not weights or not all(0.0 <= weight <= 1.0 for weight in weights):
        raise ValueError(f"interpolation weights are {list(weights)}: give at least one, each in [0, 1]")
    if x_0_first.shape != x_0_second.shape:
        raise ValueError(f"cannot interpolate images of {tuple(x_0_first.shape)} and {tuple(x_0_second.shape)}")
    process = _up_to(diffusion, diffusion.num_timesteps // 2 if timestep is None else timestep)
    indices = place(model, indices)
    ends = [
        _diffuse(process, x_0.to(indices.device), INTERPOLATION_STREAM, indices, seed, draw)
        for draw, x_0 in enumerate((x_0_first, x_0_second))
    ]
    # The paper's formula prints x_0 where the mixture is of x_t; its text and the authors' code say x_t.
    mixed = torch.stack([(1.0 - weight) * ends[0] + weight * ends[1] for weight in weights], dim=1)
    repeated = indices.repeat_interleave(len(weights))
    result = denoise_from(model, process, mixed.flatten(0, 1), repeated, seed, sampler, 0.0, clip_x_0, progress)
    return result.view(mixed.shape)


def variations(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    x_0: Tensor,
    num_variations: int,
    seed: int,
    timestep: int,
    clip_x_0: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Images that share an image's latent x_t and differ in what is left to chance: figure 7.

    x_0: (C, H, W) float in [-1, 1], diffused to `timestep`, in [0, T), once; the later, the less the results share.
    Returns (num_variations, C, H, W) in x_0's dtype. Raises ValueError for a timestep or a number out of range.
    """
    check_whole("num_variations", num_variations, 1)
    process = _up_to(diffusion, timestep)
    indices = place(model, torch.arange(num_variations))
    latent = _diffuse(process, x_0[None].to(indices.device), VARIATION_STREAM, indices[:1], seed, 0)[0]
    return from_latent(model, diffusion, latent, indices, seed, timestep, clip_x_0, progress)


def from_latent(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    x_t: Tensor,
    indices: Tensor,
    seed: int,
    timestep: int,
    clip_x_0: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Ancestral samples of p_theta(x_0 | x_t), one for each index, from one x_t: (C, H, W) at `timestep`.

    x_t: float, may come from a Trajectory. timestep: original, in [0, T). Returns (B, C, H, W) in x_t's dtype.
    Raises ValueError if the timestep is out of range.
    """
    process = _up_to(diffusion, timestep)
    indices = place(model, indices)
    start = x_t.to(indices.device).expand(len(indices), *x_t.shape)
    return denoise_from(model, process, start, indices, seed, "ddpm", 0.0, clip_x_0, progress)


def _up_to(diffusion: GaussianDiffusion, timestep: int) -> GaussianDiffusion:
    """The part of the process that ends at an original timestep."""
    check_whole("timestep", timestep, 0, diffusion.num_timesteps - 1)
    return diffusion.respaced(range(timestep + 1))


def _diffuse(process: GaussianDiffusion, x_0: Tensor, stream: str, indices: Tensor, seed: int, draw: int) -> Tensor:
    """x_t at the end of the process, with noise from a stream."""
    t = torch.full_like(indices, process.num_steps - 1)
    return process.q_sample(x_0, t, philox.normal(seed, stream, indices, x_0.shape[1:], draw, x_0.dtype))
