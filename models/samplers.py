"""Samplers: from noise to images, by any selection of timesteps, image i a function of (seed, i) alone.

Every number drawn comes from a Philox stream keyed by (seed, image index, original timestep), so an image does
not depend on the batch it is made in, nor on who makes the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.checks import check_choice, check_number, check_whole
from models import philox
from models.diffusion import GaussianDiffusion, NoiseModel
from models.networks.table import eval_mode, image_shape, place

LOWEST_HALF_LOG_SNR = -5.1
"""Where the steps of DPM-Solver++ begin to be spread from; the paper's linear schedule ends at -5.06."""

Progress = Callable[[int, int], None]
"""Called after each step with the number of steps done and the total."""


@dataclass(frozen=True)
class Step:
    """What one reverse step starts from.

    x_t and x_0, the network's estimate from it: (B, C, H, W) of one float dtype. position: the step t in the process,
    0 the last taken. eta: in [0, 1]. noise: draws standard normal numbers like x_t. previous: the step before, if any.
    """

    process: GaussianDiffusion
    x_t: Tensor
    x_0: Tensor
    position: int
    eta: float
    noise: Callable[[], Tensor]
    previous: Step | None

    @property
    def t(self) -> Tensor:
        """The position of every image, (B,) int64 on their device."""
        return self.x_t.new_full((self.x_t.shape[0],), self.position, dtype=torch.int64)

    @property
    def alpha_bar(self) -> float:
        """alphas_cumprod at x_t, in (0, 1)."""
        return float(self.process.tables.alphas_cumprod[self.position])

    @property
    def alpha_bar_prev(self) -> float:
        """alphas_cumprod at x_{t-1}, which the step leads to; 1 where that is an image."""
        return float(self.process.tables.alphas_cumprod_prev[self.position])


def ddpm_step(step: Step) -> Tensor:
    """Ancestral sampling, Ho et al. 2020, algorithm 2: the posterior mean of the estimate plus sigma_t z.

    Returns x_{t-1}, like x_t; so does every rule below.
    """
    mean = step.process.posterior_mean(step.x_0, step.x_t, step.t)
    if step.position == 0:
        return mean
    log_variance = float(step.process.tables.model_log_variance[step.position])
    return mean + math.exp(0.5 * log_variance) * step.noise()


def ddim_step(step: Step) -> Tensor:
    """Song, Meng and Ermon 2021, equation 12, with the sigma of equation 16: eta 0 is deterministic, 1 ancestral."""
    alpha_bar, alpha_bar_prev = step.alpha_bar, step.alpha_bar_prev
    sigma = step.eta * math.sqrt(float(step.process.tables.posterior_variance[step.position]))
    # The direction to x_t must belong to the clipped estimate, or the two would not add up to x_t.
    direction = (step.x_t - math.sqrt(alpha_bar) * step.x_0) / math.sqrt(1.0 - alpha_bar)
    mean = math.sqrt(alpha_bar_prev) * step.x_0
    mean = mean + math.sqrt(max(0.0, 1.0 - alpha_bar_prev - sigma**2)) * direction
    return mean if step.position == 0 or sigma == 0.0 else mean + sigma * step.noise()


def dpm_solver_step(step: Step) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: second order from the previous estimate, without noise.

    The first step is of first order for want of a history. So is the last, whose target has no noise left: its
    log-SNR is infinite and the formula's limit is the estimate itself. And so is one more than three times as
    wide in log-SNR as the one before, as badly spaced timesteps have: extrapolating that far does harm.
    """
    if step.position == 0:
        return step.x_0
    alpha_bar, alpha_bar_prev = step.alpha_bar, step.alpha_bar_prev
    # The paper's lambda, lambda at the target, and h.
    start, end = _half_log_snr(alpha_bar), _half_log_snr(alpha_bar_prev)
    width = end - start
    estimate = step.x_0
    if step.previous is not None:
        ratio = (start - _half_log_snr(step.previous.alpha_bar)) / width
        if ratio > 1.0 / 3.0:
            estimate = estimate + (step.x_0 - step.previous.x_0) / (2.0 * ratio)
    scale = math.sqrt((1.0 - alpha_bar_prev) / (1.0 - alpha_bar))
    return scale * step.x_t - math.sqrt(alpha_bar_prev) * math.expm1(-width) * estimate


def uniform_timesteps(diffusion: GaussianDiffusion, num_sampling_steps: int) -> list[int]:
    """Timesteps in equal distances, both ends included; one step is T - 1 alone. num_sampling_steps: in [1, T]."""
    targets = np.linspace(diffusion.num_timesteps - 1, 0, num_sampling_steps)[::-1]
    return np.round(targets).astype(int).tolist()


def log_snr_timesteps(diffusion: GaussianDiffusion, num_sampling_steps: int) -> list[int]:
    """Timesteps in equal distances of log-SNR (Lu et al. 2022), both ends included, no two the same.

    diffusion: with all its timesteps. num_sampling_steps: in [1, T].
    """
    num_timesteps = diffusion.num_timesteps
    half_log_snr = np.array([_half_log_snr(value) for value in diffusion.tables.alphas_cumprod.tolist()])
    # The cosine schedule ends at almost pure noise, whose log-SNR would claim half of the steps.
    lowest = max(half_log_snr[-1], LOWEST_HALF_LOG_SNR)
    targets = np.linspace(lowest, half_log_snr[0], num_sampling_steps)[::-1]
    nearest = np.abs(half_log_snr[None, :] - targets[:, None]).argmin(axis=1)
    nearest[-1] = num_timesteps - 1
    # Early timesteps lie far apart in log-SNR: push equal choices up, then keep room at the end.
    steps = np.arange(num_sampling_steps)
    chosen = np.maximum.accumulate(nearest - steps) + steps
    return np.minimum(chosen, num_timesteps - num_sampling_steps + steps).tolist()


@dataclass(frozen=True)
class Sampler:
    """A rule for one step and the timesteps it likes best."""

    step: Callable[[Step], Tensor]
    spacing: Callable[[GaussianDiffusion, int], list[int]] = uniform_timesteps


SAMPLERS = {
    "ddpm": Sampler(ddpm_step),
    "ddim": Sampler(ddim_step),
    "dpm-solver++": Sampler(dpm_solver_step, log_snr_timesteps),
}


def sample(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    indices: Tensor,
    seed: int,
    sampler: str = "ddpm",
    num_sampling_steps: int | None = None,
    eta: float = 0.0,
    clip_x_0: bool = True,
    progress: Progress | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """Generate one image for each index: (B, C, H, W) float32 in [-1, 1] (unbounded with clip_x_0 = False).

    indices: (B,) int64; image i depends on (seed, i) alone, up to the rounding of the network's arithmetic. seed: any
    integer. sampler: a name in SAMPLERS. num_sampling_steps: how many of the T timesteps to visit, all of the process
    by default; or name them in `timesteps`, increasing. eta: DDIM's noise, in [0, 1]. progress: called after each
    step. shape: (C, H, W) of one image, needed only for a model without a config. A network is used in eval mode and
    put back as it was; the images lie on its device. Raises ValueError for an unknown sampler or steps out of range.
    """
    process = choose_process(diffusion, sampler, num_sampling_steps, timesteps)
    indices = place(model, indices)
    x_T = philox.normal(seed, "sampler/x_T", indices, shape or image_shape(model))  # noqa: N806
    return denoise_from(model, process, x_T, indices, seed, sampler, eta, clip_x_0, progress)


def denoise_from(
    model: NoiseModel,
    process: GaussianDiffusion,
    x_t: Tensor,
    indices: Tensor,
    seed: int,
    sampler: str = "ddpm",
    eta: float = 0.0,
    clip_x_0: bool = True,
    progress: Progress | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Run the reverse process from its last step, at which x_t lies, down to images (Ho et al. 2020, algorithm 2).

    x_t: (B, C, H, W) float on the network's device; the images are like it. indices: (B,) int64 on that device;
    images with the same index get the same noise. on_step is called with every step before it is taken. See sample.
    """
    check_sampler(sampler)
    if len(indices) != len(x_t):
        raise ValueError(f"{len(indices)} indices for {len(x_t)} images: give one index for each image")
    check_number("eta", eta, least=0, most=1, hint="0 is deterministic DDIM, 1 ancestral")
    with eval_mode(model), torch.inference_mode():
        previous = None
        for done, position in enumerate(reversed(range(process.num_steps)), start=1):
            t = torch.full((x_t.shape[0],), position, dtype=torch.int64, device=x_t.device)
            x_0 = process.denoise(model, x_t, t, clip_x_0)
            draw = int(process.timesteps[position])
            noise = functools.partial(
                philox.normal, seed, "sampler/noise", indices, x_t.shape[1:], draw=draw, dtype=x_t.dtype
            )
            step = Step(process, x_t, x_0, position, eta, noise, previous)
            if on_step is not None:
                on_step(step)
            x_t = SAMPLERS[sampler].step(step)
            # One estimate back is all a two-step method needs; longer chains would hold every image.
            previous = Step(process, x_t, x_0, position, eta, noise, None)
            if progress is not None:
                progress(done, process.num_steps)
    # A tensor born in inference mode could not take part in training later.
    return x_t.clone()


def choose_process(
    diffusion: GaussianDiffusion,
    sampler: str,
    num_sampling_steps: int | None = None,
    timesteps: Sequence[int] | None = None,
) -> GaussianDiffusion:
    """The process restricted to the timesteps that a sampler is to visit. Raises ValueError as sample does.

    Both settings choose among the T timesteps that the model was trained with, whatever part of them `diffusion` is;
    without either it is returned as it is.
    """
    check_sampler(sampler)
    if timesteps is not None:
        return diffusion.respaced(timesteps)
    if num_sampling_steps is None:
        return diffusion
    hint = "the number of timesteps that this model was trained with is the most"
    check_whole("num_sampling_steps", num_sampling_steps, 1, diffusion.num_timesteps, hint)
    whole = diffusion if diffusion.num_steps == diffusion.num_timesteps else GaussianDiffusion(diffusion.config)
    if num_sampling_steps == whole.num_timesteps:
        return whole
    return whole.respaced(SAMPLERS[sampler].spacing(whole, num_sampling_steps))


def check_sampler(sampler: str) -> None:
    """Raise ValueError unless the name is in SAMPLERS."""
    check_choice("sampler", sampler, SAMPLERS)


def _half_log_snr(alpha_bar: float) -> float:
    """log(alpha_t / sigma_t), the lambda_t of Lu et al. 2022: half the logarithm of the signal-to-noise ratio.

    alpha_bar = alpha_t^2 = 1 - sigma_t^2, in (0, 1).
    """
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))
