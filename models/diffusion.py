"""The diffusion process of Ho et al. 2020, sections 2 and 3: q(x_t | x_0), the posterior, the reverse step, the loss.

Timesteps are counted from zero: t = 0 is the paper's t = 1 (one step of noise), t = T - 1 the paper's T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from models.config import DiffusionConfig
from models.schedule import DiffusionTables, make_betas, make_tables, respace_betas

NoiseModel = Callable[[Tensor, Tensor], Tensor]
"""eps_theta: x_t (B, C, H, W) float and t (B,) int64 to the predicted noise (B, C, H, W)."""


class GaussianDiffusion:
    """The process with its coefficients, `tables`, in float64 on the CPU.

    In all methods images are (B, C, H, W) float32 or float64, in [-1, 1] where they are x_0, and t is (B,) int64 in
    [0, num_steps) on their device. A method gathers coefficients in float64 and casts them once, to the images'
    dtype (float32 for 16-bit images); results have the images' shape and device.

    With `timesteps`, an increasing selection from [0, T), it is the process that visits those alone (Nichol and
    Dhariwal 2021, equation 19): t then counts within the selection, and the network is still given the original.
    Raises ValueError if `timesteps` is empty, not increasing or out of range.
    """

    def __init__(self, config: DiffusionConfig | None = None, timesteps: Sequence[int] | None = None) -> None:
        self.config = config or DiffusionConfig()
        betas = make_betas(self.config)
        chosen = np.arange(len(betas)) if timesteps is None else _checked_timesteps(timesteps, len(betas))
        if timesteps is not None:
            betas = respace_betas(betas, chosen)
        self.num_steps = len(betas)
        self.num_timesteps = self.config.num_timesteps
        self.timesteps = torch.from_numpy(chosen.astype(np.int64))
        """The original timestep of each step, (num_steps,) int64 in [0, T)."""
        self.tables = make_tables(betas, self.config.variance)
        self._on_device: dict[torch.device, DiffusionTables] = {}

    def respaced(self, timesteps: Sequence[int]) -> GaussianDiffusion:
        """The process that visits only these original timesteps, given in increasing order. Raises ValueError."""
        return GaussianDiffusion(self.config, timesteps)

    def tables_on(self, device: torch.device) -> DiffusionTables:
        """The tables on a device, moved there once."""
        if device not in self._on_device:
            self._on_device[device] = self.tables.to(device)
        return self._on_device[device]

    def model_timesteps(self, t: Tensor) -> Tensor:
        """The original timesteps, (B,) int64 in [0, T), which the network knows, of steps t of this process."""
        if self.num_steps == self.num_timesteps:
            return t
        return self.timesteps.to(t.device)[t]

    def q_sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Sample x_t from q(x_t | x_0), equation 4. noise: standard normal, of x_0's shape and dtype."""
        tables = self.tables_on(t.device)
        scale = gather(tables.sqrt_alphas_cumprod, t, x_0)
        return scale * x_0 + gather(tables.sqrt_one_minus_alphas_cumprod, t, x_0) * noise

    def predict_x_0(self, x_t: Tensor, t: Tensor, noise: Tensor, clip: bool = False) -> Tensor:
        """The x_0 that x_t and a predicted noise of its shape imply: equation 15. clip: bound it to [-1, 1]."""
        tables = self.tables_on(t.device)
        scale = gather(tables.sqrt_recip_alphas_cumprod, t, x_t)
        x_0 = scale * x_t - gather(tables.sqrt_recipm1_alphas_cumprod, t, x_t) * noise
        return x_0.clamp(-1.0, 1.0) if clip else x_0

    def predict_noise(self, x_t: Tensor, t: Tensor, x_0: Tensor) -> Tensor:
        """The noise that turns x_0 into x_t: equation 4 solved for it."""
        tables = self.tables_on(t.device)
        scaled = gather(tables.sqrt_recip_alphas_cumprod, t, x_t) * x_t - x_0
        return scaled / gather(tables.sqrt_recipm1_alphas_cumprod, t, x_t)

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0), equation 7."""
        tables = self.tables_on(t.device)
        from_x_0 = gather(tables.posterior_mean_coef_x_0, t, x_t) * x_0
        return from_x_0 + gather(tables.posterior_mean_coef_x_t, t, x_t) * x_t

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of q(x_{t-1} | x_t, x_0), equations 6 and 7.

        The variances are (B, 1, 1, 1). At t = 0 the variance is 0 and the log-variance that of t = 1.
        """
        tables = self.tables_on(t.device)
        variance = gather(tables.posterior_variance, t, x_t)
        log_variance = gather(tables.posterior_log_variance_clipped, t, x_t)
        return self.posterior_mean(x_0, x_t, t), variance, log_variance

    def denoise(self, model: NoiseModel, x_t: Tensor, t: Tensor, clip: bool = True) -> Tensor:
        """The network's estimate of x_0 from x_t, in x_t's dtype; clipped to [-1, 1] as in the authors' code."""
        return self.predict_x_0(x_t, t, predicted_noise(model, x_t, self.model_timesteps(t)), clip)

    def p_mean_log_variance(
        self, model: NoiseModel, x_t: Tensor, t: Tensor, clip: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance of p_theta(x_{t-1} | x_t), equation 11, and the estimate of x_0 behind the mean.

        The log-variance is (B, 1, 1, 1).
        """
        x_0 = self.denoise(model, x_t, t, clip)
        log_variance = gather(self.tables_on(t.device).model_log_variance, t, x_t)
        return self.posterior_mean(x_0, x_t, t), log_variance, x_0

    def p_sample(self, model: NoiseModel, x_t: Tensor, t: Tensor, noise: Tensor, clip: bool = True) -> Tensor:
        """Sample x_{t-1} from p_theta(x_{t-1} | x_t), algorithm 2, lines 3 and 4; no noise is added at t = 0.

        noise: standard normal, of x_t's shape and dtype.
        """
        mean, log_variance, _ = self.p_mean_log_variance(model, x_t, t, clip)
        keeps_noise = (t != 0).to(mean.dtype).view(-1, *[1] * (x_t.dim() - 1))
        return mean + keeps_noise * torch.exp(0.5 * log_variance) * noise

    def loss_per_image(self, model: NoiseModel, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """L_simple, equation 14, of each image: mean over its pixels of (eps - eps_theta)^2.

        noise: standard normal, of x_0's shape and dtype. Returns (B,) in that dtype; the training loss is its mean
        over the batch.
        """
        x_t = self.q_sample(x_0, t, noise)
        prediction = model(x_t, self.model_timesteps(t))
        # Under autocast the prediction may be bfloat16, in which the squares would lose their digits.
        error = noise - prediction.to(noise.dtype)
        return error.square().flatten(1).mean(dim=1)


def gather(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Entry t of a table for each image of x: (B, 1, ..., 1) on t's device, float64 if x is, else float32.

    table: (num_steps,) float64 on t's device. t: (B,) int64. x: (B, ...), whose dtype and number of dimensions count.
    """
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    return table[t].to(dtype).view(-1, *[1] * (x.dim() - 1))


def predicted_noise(model: NoiseModel, x_t: Tensor, t: Tensor) -> Tensor:
    """eps_theta(x_t, t) in x_t's shape and dtype, whatever the dtype the network computes in.

    t: (B,) int64, original timesteps in [0, T).
    """
    return model(x_t, t).to(x_t.dtype)


def _checked_timesteps(timesteps: Sequence[int], num_timesteps: int) -> np.ndarray:
    chosen = np.asarray(timesteps)
    if chosen.ndim != 1 or len(chosen) == 0:
        raise ValueError("timesteps is empty: give at least one timestep")
    if chosen.dtype.kind not in "iu":
        raise ValueError(f"timesteps {chosen.tolist()[:8]}...: they must be whole numbers")
    if chosen[0] < 0 or chosen[-1] >= num_timesteps or (np.diff(chosen) <= 0).any():
        raise ValueError(f"timesteps {chosen.tolist()[:8]}...: they must increase and lie in [0, {num_timesteps - 1}]")
    return chosen
