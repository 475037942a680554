"""Samplers: from noise to images, by any selection of timesteps, image i a function of (seed, i) alone.

Every number drawn comes from a Philox stream keyed by (seed, image index, original timestep), so an image does
not depend on the batch it is made in, nor on who makes the others.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from models import philox
from models.diffusion import GaussianDiffusion, NoiseModel

LOWEST_LOG_SNR = -5.1
"""Where the steps of DPM-Solver++ begin to be spread from; the paper's linear schedule ends at -5.06."""

Progress = Callable[[int, int], None]
"""Called after each step with the number of steps done and the total."""


@dataclass(frozen=True)
class Step:
    """What one reverse step starts from. `position` counts in the process, `x_0` is the network's estimate."""

    process: GaussianDiffusion
    x_t: torch.Tensor
    x_0: torch.Tensor
    position: int
    eta: float
    noise: Callable[[], torch.Tensor]
    previous: Step | None

    @property
    def t(self) -> torch.Tensor:
        """The position of every image, (B,) int64."""
        return self.x_t.new_full((self.x_t.shape[0],), self.position, dtype=torch.int64)

    def table(self, name: str) -> float:
        """This step's entry of a table of the process."""
        return float(getattr(self.process, name)[self.position])


def ddpm_step(step: Step) -> torch.Tensor:
    """Ancestral sampling, Ho et al. 2020, algorithm 2: the posterior mean of the estimate plus sigma_t z."""
    mean = step.process.posterior_mean(step.x_0, step.x_t, step.t)
    if step.position == 0:
        return mean
    return mean + math.exp(0.5 * step.table("model_log_variance")) * step.noise()


def ddim_step(step: Step) -> torch.Tensor:
    """Song, Meng and Ermon 2021, equation 12, with the sigma of equation 16: eta 0 is deterministic, 1 ancestral."""
    alpha_bar, alpha_bar_prev = step.table("alphas_cumprod"), step.table("alphas_cumprod_prev")
    sigma = step.eta * math.sqrt(step.table("posterior_variance"))
    # The direction to x_t must belong to the clipped estimate, or the two would not add up to x_t.
    direction = (step.x_t - math.sqrt(alpha_bar) * step.x_0) / math.sqrt(1.0 - alpha_bar)
    mean = math.sqrt(alpha_bar_prev) * step.x_0
    mean = mean + math.sqrt(max(0.0, 1.0 - alpha_bar_prev - sigma**2)) * direction
    return mean if step.position == 0 or sigma == 0.0 else mean + sigma * step.noise()


def dpm_solver_step(step: Step) -> torch.Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: second order from the previous estimate, without noise.

    The first step is of first order for want of a history. So is the last, whose target has no noise left: its
    log-SNR is infinite and the formula's limit is the estimate itself. And so is one more than three times as
    wide in log-SNR as the one before, as badly spaced timesteps have: extrapolating that far does harm.
    """
    if step.position == 0:
        return step.x_0
    alpha_bar, alpha_bar_prev = step.table("alphas_cumprod"), step.table("alphas_cumprod_prev")
    log_snr, log_snr_next = _log_snr(alpha_bar), _log_snr(alpha_bar_prev)
    width = log_snr_next - log_snr
    estimate = step.x_0
    if step.previous is not None:
        ratio = (log_snr - _log_snr(step.previous.table("alphas_cumprod"))) / width
        if ratio > 1.0 / 3.0:
            estimate = estimate + (step.x_0 - step.previous.x_0) / (2.0 * ratio)
    scale = math.sqrt((1.0 - alpha_bar_prev) / (1.0 - alpha_bar))
    return scale * step.x_t - math.sqrt(alpha_bar_prev) * math.expm1(-width) * estimate


def uniform_timesteps(diffusion: GaussianDiffusion, num_sampling_steps: int) -> list[int]:
    """Timesteps in equal distances, both ends included; one step is T - 1 alone."""
    targets = np.linspace(diffusion.num_timesteps - 1, 0, num_sampling_steps)[::-1]
    return np.round(targets).astype(int).tolist()


def log_snr_timesteps(diffusion: GaussianDiffusion, num_sampling_steps: int) -> list[int]:
    """Timesteps in equal distances of log-SNR (Lu et al. 2022), both ends included, no two the same."""
    num_timesteps = diffusion.num_timesteps
    log_snr = np.array([_log_snr(value) for value in diffusion.alphas_cumprod.tolist()])
    # The cosine schedule ends at almost pure noise, whose log-SNR would claim half of the steps.
    targets = np.linspace(max(log_snr[-1], LOWEST_LOG_SNR), log_snr[0], num_sampling_steps)[::-1]
    nearest = np.abs(log_snr[None, :] - targets[:, None]).argmin(axis=1)
    nearest[-1] = num_timesteps - 1
    # Early timesteps lie far apart in log-SNR: push equal choices up, then keep room at the end.
    steps = np.arange(num_sampling_steps)
    chosen = np.maximum.accumulate(nearest - steps) + steps
    return np.minimum(chosen, num_timesteps - num_sampling_steps + steps).tolist()


@dataclass(frozen=True)
class Sampler:
    """A rule for one step and the timesteps it likes best."""

    step: Callable[[Step], torch.Tensor]
    spacing: Callable[[GaussianDiffusion, int], list[int]] = uniform_timesteps


SAMPLERS = {
    "ddpm": Sampler(ddpm_step),
    "ddim": Sampler(ddim_step),
    "dpm-solver++": Sampler(dpm_solver_step, log_snr_timesteps),
}


def sample(
    model: NoiseModel,
    diffusion: GaussianDiffusion,
    indices: torch.Tensor,
    seed: int,
    sampler: str = "ddpm",
    num_sampling_steps: int | None = None,
    eta: float = 0.0,
    clip_x_0: bool = True,
    progress: Progress | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """Generate one image for each index: (B, C, H, W) float32 in [-1, 1] (unbounded with clip_x_0 = False).

    indices: (B,) int64, not negative; image i depends on (seed, i) alone, up to the rounding of the network's
    arithmetic. sampler: a name in SAMPLERS. num_sampling_steps: how many of the T timesteps to visit, all by
    default; or name them in `timesteps`, increasing. eta: DDIM's noise, in [0, 1]. shape: of one image, needed
    only for a model without a config. A network is used in eval mode and put back as it was.
    Raises ValueError for an unknown sampler or timesteps out of range.
    """
    process = choose_process(diffusion, sampler, num_sampling_steps, timesteps)
    indices = place(model, indices)
    x_T = philox.normal(seed, "sampler/x_T", indices, shape or image_shape(model))  # noqa: N806
    return denoise_from(model, process, x_T, indices, seed, sampler, eta, clip_x_0, progress)


def denoise_from(
    model: NoiseModel,
    process: GaussianDiffusion,
    x_t: torch.Tensor,
    indices: torch.Tensor,
    seed: int,
    sampler: str = "ddpm",
    eta: float = 0.0,
    clip_x_0: bool = True,
    progress: Progress | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> torch.Tensor:
    """Run the reverse process from its last step, at which x_t lies, down to images. See sample.

    Images with the same index get the same noise. on_step sees every step before it is taken.
    """
    check_sampler(sampler)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}: it must lie in [0, 1]; 0 is deterministic DDIM, 1 ancestral")
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
    """The process restricted to the timesteps that a sampler is to visit. Raises ValueError as sample does."""
    check_sampler(sampler)
    if timesteps is not None:
        return diffusion.respaced(timesteps)
    if num_sampling_steps is None or num_sampling_steps == diffusion.num_steps == diffusion.num_timesteps:
        return diffusion
    if not 1 <= num_sampling_steps <= diffusion.num_timesteps:
        raise ValueError(
            f"num_sampling_steps is {num_sampling_steps}: it must lie in [1, {diffusion.num_timesteps}], "
            "the number of steps this model was trained with"
        )
    return diffusion.respaced(SAMPLERS[sampler].spacing(diffusion, num_sampling_steps))


def check_sampler(sampler: str) -> None:
    """Raise ValueError unless the name is in SAMPLERS."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler is {sampler!r}: choose one of {', '.join(SAMPLERS)}")


def to_uint8(x: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] to uint8 in [0, 255], rounded to the nearest level and clamped; same shape."""
    # Truncation, a common slip, darkens every image by half a level.
    return x.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


@contextmanager
def eval_mode(model: NoiseModel) -> Iterator[None]:
    """A network without dropout inside the block, and as it was afterwards; other callables are left alone."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _log_snr(alpha_bar: float) -> float:
    """log(alpha_t / sigma_t), half the logarithm of the signal-to-noise ratio."""
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))


def image_shape(model: Any) -> tuple[int, int, int]:
    """(C, H, W) of a network's images, also inside DistributedDataParallel or torch.compile."""
    return getattr(model, "module", getattr(model, "_orig_mod", model)).config.image_shape


def place(model: NoiseModel, indices: torch.Tensor) -> torch.Tensor:
    """The indices on the network's device, where the noise is then made; where they are for other callables."""
    if isinstance(model, torch.nn.Module):
        return indices.to(next((parameter.device for parameter in model.parameters()), indices.device))
    return indices
