"""The variational bound on the likelihood, term by term, in bits per dimension (Ho et al. 2020, equations 5 to 13)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import philox
from models.diffusion import GaussianDiffusion, NoiseModel
from models.networks.table import eval_mode, place
from models.samplers import Progress

NOISE_STREAM = "likelihood/noise"
BITS = 1.0 / math.log(2.0)
HALF_BIN = 1.0 / 255.0
"""Half the distance of two grey levels in [-1, 1]."""
OPEN_TAIL = 0.999
"""Levels beyond this magnitude take the whole tail of the Gaussian."""
LOWEST_PROBABILITY = 1e-12
LEVELS_PER_UNIT = 127.5


@dataclass(frozen=True)
class Bound:
    """The bound of each image and its terms, all float64 on the CPU, in bits per dimension (equation 5).

    prior: (B,), KL(q(x_T | x_0) || N(0, I)). terms: (B, T), column 0 the negative log-likelihood of the discrete
    decoder, column t > 0 KL(q(x_{t-1} | x_t, x_0) || p_theta(x_{t-1} | x_t)). squared_error: (B, T), mean of
    (x_0 - estimate from x_t)^2, images in [-1, 1].
    """

    prior: Tensor
    terms: Tensor
    squared_error: Tensor

    @property
    def total(self) -> Tensor:
        """(B,) upper bound on the negative log-likelihood, in bits per dimension (equation 5)."""
        return self.prior + self.terms.sum(dim=1)

    @property
    def rate(self) -> Tensor:
        """(B, T) bits per dimension known of an image once x_t is: the prior and the terms after t (section 4.3)."""
        after = self.terms.flip(1).cumsum(1).flip(1) - self.terms
        return self.prior[:, None] + after

    @property
    def distortion(self) -> Tensor:
        """(T,) root mean squared error of the estimate from x_t over all images, in levels of [0, 255]."""
        return self.squared_error.mean(dim=0).sqrt() * LEVELS_PER_UNIT


def variational_bound(
    model: NoiseModel,
    process: GaussianDiffusion,
    x_0: Tensor,
    indices: Tensor,
    seed: int,
    clip_x_0: bool = True,
    progress: Progress | None = None,
) -> Bound:
    """Estimate the bound, equation 5, with one draw of x_t per image and timestep.

    x_0: (B, C, H, W) float32 or float64 in [-1, 1], on the 256 levels. indices: (B,) int64; image i's noise depends
    on (seed, i, t) alone. process: all timesteps, or a respaced one, whose bound is that of the shorter chain.
    clip_x_0: bound the network's estimates to [-1, 1], as the authors do. The work is done on the network's device.
    Raises ValueError unless x_0 holds floats and there is one index for each image.
    """
    if len(indices) != len(x_0):
        raise ValueError(f"{len(indices)} indices for {len(x_0)} images: give one index for each image")
    if not x_0.is_floating_point():
        raise ValueError(f"x_0 holds {x_0.dtype}: it must be floats in [-1, 1], as models.pixels.from_uint8 makes them")
    indices = place(model, indices)
    x_0 = x_0.to(indices.device)
    terms, errors = [], []
    with eval_mode(model), torch.inference_mode():
        for position in reversed(range(process.num_steps)):
            t = torch.full_like(indices, position)
            draw = int(process.timesteps[position])
            noise = philox.normal(seed, NOISE_STREAM, indices, x_0.shape[1:], draw, x_0.dtype)
            estimate = process.denoise(model, process.q_sample(x_0, t, noise), t, clip_x_0)
            error = (x_0 - estimate).double().square().flatten(1).mean(dim=1)
            errors.append(error)
            is_last = position == 0
            terms.append(_decoder(process, x_0, estimate) if is_last else divergence(process, position, error))
            if progress is not None:
                progress(process.num_steps - position, process.num_steps)
        prior = prior_divergence(process, x_0)
    stacked = [torch.stack(values[::-1], dim=1).cpu().clone() for values in (terms, errors)]
    return Bound(prior.cpu().clone(), *stacked)


def divergence(process: GaussianDiffusion, position: int, squared_error: Tensor) -> Tensor:
    """L_{t-1} of equation 5, (B,) float64 in bits per dimension, of an estimate of x_0 with that mean squared error.

    position: the step t > 0 of the process. squared_error: (B,) float64, mean of (x_0 - estimate)^2 over dimensions.
    Both Gaussians are isotropic and their means differ by the estimate's error times the coefficient of x_0, so
    the KL divergence needs nothing else, and float64 keeps the digits of its nearly cancelling variances.
    """
    log_variance = float(process.tables.posterior_log_variance_clipped[position])
    model_log_variance = float(process.tables.model_log_variance[position])
    log_ratio = model_log_variance - log_variance
    scale = float(process.tables.posterior_mean_coef_x_0[position]) ** 2 * math.exp(-model_log_variance)
    return 0.5 * BITS * (log_ratio + math.expm1(-log_ratio) + scale * squared_error)


def prior_divergence(process: GaussianDiffusion, x_0: Tensor) -> Tensor:
    """L_T of equation 5, (B,) float64 in bits per dimension: KL(q(x_T | x_0) || N(0, I)). x_0: (B, ...) in [-1, 1]."""
    alpha_bar = float(process.tables.alphas_cumprod[-1])
    mean_square = alpha_bar * x_0.double().square().flatten(1).mean(dim=1)
    return 0.5 * BITS * (mean_square - alpha_bar - math.log1p(-alpha_bar))


def discretised_log_likelihood(x_0: Tensor, mean: Tensor, log_scale: float) -> Tensor:
    """Equation 13: log-probability, in nats, that a Gaussian puts on the bin of each level; same shape, float64.

    x_0: any shape, in [-1, 1] on the 256 levels; mean: same shape; log_scale: logarithm of the deviation.
    The two end levels take the open tails. Like the authors, with the tanh approximation of the normal
    distribution function and a floor of 1e-12 on every probability.
    """
    offset, inverse = (x_0 - mean).double(), math.exp(-log_scale)
    upper = _normal_cdf(inverse * (offset + HALF_BIN))
    lower = _normal_cdf(inverse * (offset - HALF_BIN))
    inside = (upper - lower).clamp(min=LOWEST_PROBABILITY)
    lowest = upper.clamp(min=LOWEST_PROBABILITY)
    highest = (1.0 - lower).clamp(min=LOWEST_PROBABILITY)
    probability = torch.where(x_0 < -OPEN_TAIL, lowest, torch.where(x_0 > OPEN_TAIL, highest, inside))
    return probability.log()


def rate_distortion(bounds: Sequence[Bound]) -> list[dict[str, float]]:
    """Progressive coding, table 4 and figure 5: mean rate in bits/dim and RMSE in levels, noisiest step first.

    bounds: of at least one image, all of one process. Each point is {"position", "rate_bits_per_dim", "rmse_levels"}.
    """
    rate = torch.cat([bound.rate for bound in bounds]).mean(dim=0)
    error = torch.cat([bound.squared_error for bound in bounds]).mean(dim=0).sqrt() * LEVELS_PER_UNIT
    return [
        {"position": position, "rate_bits_per_dim": float(rate[position]), "rmse_levels": float(error[position])}
        for position in reversed(range(len(rate)))
    ]


def _decoder(process: GaussianDiffusion, x_0: Tensor, mean: Tensor) -> Tensor:
    """L_0: at the last step the posterior mean is the estimate itself; its variance is that of the step before."""
    log_likelihood = discretised_log_likelihood(x_0, mean, 0.5 * float(process.tables.decoder_log_variance[0]))
    return -BITS * log_likelihood.flatten(1).mean(dim=1)


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the standard normal distribution function (Ho utils.py:112)."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
