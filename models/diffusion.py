"""The diffusion process of Ho et al. 2020, sections 2 and 3: schedules, q(x_t | x_0), the posterior, the loss.

Timesteps are counted from zero: t = 0 is the paper's t = 1 (one step of noise), t = T - 1 the paper's T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from models.config import DiffusionConfig

NoiseModel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""eps_theta: x_t (B, ...) float and t (B,) int64 to the predicted noise (B, ...)."""

MAX_COSINE_BETA = 0.999


def make_betas(config: DiffusionConfig) -> np.ndarray:
    """The variances beta_t of the forward steps, (T,) float64 in (0, 1)."""
    if config.schedule == "linear":
        return np.linspace(config.beta_start, config.beta_end, config.num_timesteps, dtype=np.float64)
    # Nichol and Dhariwal 2021, equation 17: alphas_cumprod = f(t) / f(0), cut so that no step erases everything.
    times = np.arange(config.num_timesteps + 1, dtype=np.float64) / config.num_timesteps
    squared_cosine = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - squared_cosine[1:] / squared_cosine[:-1], MAX_COSINE_BETA)


class GaussianDiffusion:
    """The coefficients of the process and what follows from them.

    Its tables are attributes, (num_steps,) float64 tensors on the CPU: betas, alphas, alphas_cumprod,
    alphas_cumprod_prev, sqrt_alphas_cumprod, posterior_variance, model_log_variance and those of _fill_tables.
    Methods gather from them on the device of t and cast the gathered numbers to the dtype of x once. Images are
    (B, C, H, W) float, in [-1, 1] when they are x_0; t is (B,) int64 in [0, num_steps).

    With `timesteps`, an increasing selection from [0, T), it is the process that visits those alone (Nichol and
    Dhariwal 2021, equation 19): t then counts within the selection, and the network is still told the original.
    Raises ValueError if `timesteps` is empty, not increasing or out of range.
    """

    def __init__(self, config: DiffusionConfig | None = None, timesteps: Sequence[int] | None = None) -> None:
        self.config = config or DiffusionConfig()
        betas = make_betas(self.config)
        chosen = np.arange(len(betas)) if timesteps is None else _checked_timesteps(timesteps, len(betas))
        if timesteps is not None:
            alphas_cumprod = np.cumprod(1.0 - betas)[chosen]
            betas = 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1])
        self.num_steps = len(betas)
        self.num_timesteps = self.config.num_timesteps
        self.timesteps = torch.from_numpy(chosen.astype(np.int64))
        self._on_device: dict[tuple[str, torch.device], torch.Tensor] = {}
        self._fill_tables(betas)

    def _fill_tables(self, betas: np.ndarray) -> None:
        alphas_cumprod = np.cumprod(1.0 - betas)
        alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
        # Equations 6 and 7. The variance is 0 at t = 0, where x_0 is known.
        posterior_variance = betas * (1.0 - alphas_cumprod_prev) / (1.0 - alphas_cumprod)
        # A single step has no second entry; its own beta stands in.
        first_variance = posterior_variance[1] if len(betas) > 1 else betas[0]
        large = self.config.variance == "fixedlarge"
        variance = np.append(first_variance, betas[1:]) if large else np.maximum(posterior_variance, 1e-20)
        tables = {
            "betas": betas,
            "alphas": 1.0 - betas,
            "alphas_cumprod": alphas_cumprod,
            "alphas_cumprod_prev": alphas_cumprod_prev,
            "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
            "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - alphas_cumprod),
            "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod),
            "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod - 1.0),
            "posterior_mean_coef_x_0": betas * np.sqrt(alphas_cumprod_prev) / (1.0 - alphas_cumprod),
            "posterior_mean_coef_x_t": (1.0 - alphas_cumprod_prev) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
            "posterior_variance": posterior_variance,
            "posterior_log_variance_clipped": np.log(np.append(first_variance, posterior_variance[1:])),
            "model_log_variance": np.log(variance),
            "decoder_log_variance": np.log(np.append(first_variance, variance[1:])),
        }
        self._tables = {name: torch.from_numpy(table) for name, table in tables.items()}

    def __getattr__(self, name: str) -> torch.Tensor:
        tables = self.__dict__.get("_tables", {})
        if name in tables:
            return tables[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def respaced(self, timesteps: Sequence[int]) -> GaussianDiffusion:
        """The process that visits only these original timesteps, given in increasing order."""
        return GaussianDiffusion(self.config, timesteps)

    def coefficient(self, name: str, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Entry t of a table for each image: (B, 1, ..., 1) on t's device in x's dtype."""
        key = (name, t.device)
        if key not in self._on_device:
            self._on_device[key] = self._tables[name].to(t.device)
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        return self._on_device[key][t].to(dtype).view(-1, *[1] * (x.dim() - 1))

    def model_timesteps(self, t: torch.Tensor) -> torch.Tensor:
        """The original timesteps, which the network knows, of positions t in this process."""
        if self.num_steps == self.num_timesteps:
            return t
        return self.timesteps.to(t.device)[t]

    def q_sample(self, x_0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Sample x_t from q(x_t | x_0), equation 4, with the given standard normal noise."""
        scale = self.coefficient("sqrt_alphas_cumprod", t, x_0)
        return scale * x_0 + self.coefficient("sqrt_one_minus_alphas_cumprod", t, x_0) * noise

    def predict_x_0(self, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, clip: bool = False) -> torch.Tensor:
        """The x_0 that x_t and a predicted noise imply: equation 15. clip: bound it to [-1, 1]."""
        scale = self.coefficient("sqrt_recip_alphas_cumprod", t, x_t)
        x_0 = scale * x_t - self.coefficient("sqrt_recipm1_alphas_cumprod", t, x_t) * noise
        return x_0.clamp(-1.0, 1.0) if clip else x_0

    def predict_noise(self, x_t: torch.Tensor, t: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
        """The noise that turns x_0 into x_t: equation 4 solved for it."""
        scaled = self.coefficient("sqrt_recip_alphas_cumprod", t, x_t) * x_t - x_0
        return scaled / self.coefficient("sqrt_recipm1_alphas_cumprod", t, x_t)

    def posterior_mean(self, x_0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Mean of q(x_{t-1} | x_t, x_0), equation 7."""
        from_x_0 = self.coefficient("posterior_mean_coef_x_0", t, x_t) * x_0
        return from_x_0 + self.coefficient("posterior_mean_coef_x_t", t, x_t) * x_t

    def posterior(
        self, x_0: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean, variance and log-variance of q(x_{t-1} | x_t, x_0), equations 6 and 7.

        The variances are (B, 1, 1, 1). At t = 0 the variance is 0 and the log-variance that of t = 1.
        """
        variance = self.coefficient("posterior_variance", t, x_t)
        log_variance = self.coefficient("posterior_log_variance_clipped", t, x_t)
        return self.posterior_mean(x_0, x_t, t), variance, log_variance

    def denoise(self, model: NoiseModel, x_t: torch.Tensor, t: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """The network's estimate of x_0 from x_t, in x_t's dtype; clip as in the authors' code."""
        return self.predict_x_0(x_t, t, predicted_noise(model, x_t, self.model_timesteps(t)), clip)

    def p_mean_log_variance(
        self, model: NoiseModel, x_t: torch.Tensor, t: torch.Tensor, clip: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and log-variance of p_theta(x_{t-1} | x_t), equation 11, and the estimate of x_0 behind the mean."""
        x_0 = self.denoise(model, x_t, t, clip)
        return self.posterior_mean(x_0, x_t, t), self.coefficient("model_log_variance", t, x_t), x_0

    def p_sample(
        self, model: NoiseModel, x_t: torch.Tensor, t: torch.Tensor, noise: torch.Tensor, clip: bool = True
    ) -> torch.Tensor:
        """Sample x_{t-1} from p_theta(x_{t-1} | x_t), algorithm 2, lines 3 and 4; no noise is added at t = 0."""
        mean, log_variance, _ = self.p_mean_log_variance(model, x_t, t, clip)
        keeps_noise = (t != 0).to(mean.dtype).view(-1, *[1] * (x_t.dim() - 1))
        return mean + keeps_noise * torch.exp(0.5 * log_variance) * noise

    def loss_per_image(
        self, model: NoiseModel, x_0: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """L_simple, equation 14, of each image: mean over its pixels of (eps - eps_theta)^2.

        Returns (B,) float32 (float64 for float64 images); the training loss is its mean over the batch.
        """
        x_t = self.q_sample(x_0, t, noise)
        prediction = model(x_t, self.model_timesteps(t))
        # Under autocast the prediction may be bfloat16, in which the squares would lose their digits.
        error = noise - prediction.to(noise.dtype)
        return error.square().flatten(1).mean(dim=1)


def predicted_noise(model: NoiseModel, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """eps_theta(x_t, t) in x_t's dtype, whatever the dtype the network computes in."""
    return model(x_t, t).to(x_t.dtype)


def _checked_timesteps(timesteps: Sequence[int], num_timesteps: int) -> np.ndarray:
    chosen = np.asarray(timesteps, dtype=np.int64)
    if chosen.ndim != 1 or len(chosen) == 0:
        raise ValueError("timesteps is empty: give at least one timestep")
    if chosen[0] < 0 or chosen[-1] >= num_timesteps or (np.diff(chosen) <= 0).any():
        raise ValueError(f"timesteps {chosen.tolist()[:8]}...: they must increase and lie in [0, {num_timesteps - 1}]")
    return chosen
