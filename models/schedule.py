"""The noise schedule and every coefficient that follows from it: one table per symbol of the paper, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from models.config import DiffusionConfig

MAX_COSINE_BETA = 0.999
LOWEST_VARIANCE = 1e-20


@dataclass(frozen=True)
class DiffusionTables:
    """The coefficients of a process of `num_steps` steps: each a (num_steps,) float64 tensor, entry t of step t.

    Step t = 0 is the paper's t = 1. Equations are those of Ho et al. 2020; alpha_bar is the paper's symbol for
    alphas_cumprod, beta_tilde for posterior_variance.
    """

    betas: Tensor
    """beta_t, the variance that forward step t adds (equation 2), in (0, 1)."""
    alphas: Tensor
    """alpha_t = 1 - beta_t (above equation 4)."""
    alphas_cumprod: Tensor
    """alpha_bar_t = product of alpha_s over s <= t (above equation 4): the share of x_0's variance in x_t."""
    alphas_cumprod_prev: Tensor
    """alpha_bar_{t-1}; 1 at t = 0, where x_{t-1} is x_0 itself."""
    sqrt_alphas_cumprod: Tensor
    """sqrt(alpha_bar_t), the factor of x_0 in x_t (equation 4)."""
    sqrt_one_minus_alphas_cumprod: Tensor
    """sqrt(1 - alpha_bar_t), the factor of the noise in x_t (equation 4)."""
    sqrt_recip_alphas_cumprod: Tensor
    """sqrt(1 / alpha_bar_t), the factor of x_t in x_0 (equation 15)."""
    sqrt_recipm1_alphas_cumprod: Tensor
    """sqrt(1 / alpha_bar_t - 1), the factor of the noise in x_0 (equation 15)."""
    posterior_mean_coef_x_0: Tensor
    """sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t), the factor of x_0 in the posterior's mean (equation 7)."""
    posterior_mean_coef_x_t: Tensor
    """sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t), the factor of x_t in it (equation 7)."""
    posterior_variance: Tensor
    """beta_tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t (equation 7); 0 at t = 0, where x_0 is known."""
    posterior_log_variance_clipped: Tensor
    """log(beta_tilde_t), with the entry of t = 1 at t = 0 instead of minus infinity (authors' code)."""
    model_log_variance: Tensor
    """log(sigma_t^2) of the reverse step (section 3.2): sigma_t^2 is beta_t under fixedlarge, with beta_tilde_1 at
    t = 0; beta_tilde_t under fixedsmall, at least 1e-20."""
    decoder_log_variance: Tensor
    """log(sigma_t^2) for the decoder of equation 13, which is entry 0: log(beta_tilde_1) under both kinds."""

    def to(self, device: torch.device) -> DiffusionTables:
        """The same tables on a device."""
        return DiffusionTables(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def make_betas(config: DiffusionConfig) -> np.ndarray:
    """The variances beta_t of the T forward steps, (T,) float64 in (0, 1)."""
    if config.schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, config.num_timesteps, dtype=np.float64)
    # Nichol and Dhariwal 2021, equation 17: alphas_cumprod = f(t) / f(0), cut so that no step erases everything.
    times = np.arange(config.num_timesteps + 1, dtype=np.float64) / config.num_timesteps
    squared_cosine = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - squared_cosine[1:] / squared_cosine[:-1], MAX_COSINE_BETA)


def respace_betas(betas: np.ndarray, timesteps: Sequence[int] | np.ndarray) -> np.ndarray:
    """The betas of the process that visits only some timesteps with the same alpha_bar at each.

    betas: (T,) float64. timesteps: N of [0, T), increasing. Returns (N,) float64 (Nichol and Dhariwal 2021,
    equation 19).
    """
    alphas_cumprod = np.cumprod(1.0 - betas)[timesteps]
    return 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])


def make_tables(betas: np.ndarray, variance: str) -> DiffusionTables:
    """All coefficients of the process with these betas, (N,) float64, N >= 1; variance: fixedlarge or fixedsmall."""
    alphas_cumprod = np.cumprod(1.0 - betas)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    posterior_variance = betas * (1.0 - alphas_cumprod_prev) / (1.0 - alphas_cumprod)
    # A single step has no second entry; its own beta stands in.
    first_variance = posterior_variance[1] if len(betas) > 1 else betas[0]
    large, small = np.append(first_variance, betas[1:]), np.maximum(posterior_variance, LOWEST_VARIANCE)
    model_variance = large if variance == "fixedlarge" else small
    return DiffusionTables(
        betas=torch.from_numpy(betas),
        alphas=torch.from_numpy(1.0 - betas),
        alphas_cumprod=torch.from_numpy(alphas_cumprod),
        alphas_cumprod_prev=torch.from_numpy(alphas_cumprod_prev),
        sqrt_alphas_cumprod=torch.from_numpy(np.sqrt(alphas_cumprod)),
        sqrt_one_minus_alphas_cumprod=torch.from_numpy(np.sqrt(1.0 - alphas_cumprod)),
        sqrt_recip_alphas_cumprod=torch.from_numpy(np.sqrt(1.0 / alphas_cumprod)),
        sqrt_recipm1_alphas_cumprod=torch.from_numpy(np.sqrt(1.0 / alphas_cumprod - 1.0)),
        posterior_mean_coef_x_0=torch.from_numpy(betas * np.sqrt(alphas_cumprod_prev) / (1.0 - alphas_cumprod)),
        posterior_mean_coef_x_t=torch.from_numpy(
            (1.0 - alphas_cumprod_prev) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod)
        ),
        posterior_variance=torch.from_numpy(posterior_variance),
        posterior_log_variance_clipped=torch.from_numpy(np.log(np.append(first_variance, posterior_variance[1:]))),
        model_log_variance=torch.from_numpy(np.log(model_variance)),
        decoder_log_variance=torch.from_numpy(np.log(np.append(first_variance, model_variance[1:]))),
    )
