"""A two-dimensional Gaussian mixture whose diffusion is known in closed form: the target of sampler tests."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.distance import cdist

MEANS = np.array([[-0.6, -0.4], [0.5, 0.5], [0.3, -0.6]])
WEIGHTS = np.array([0.5, 0.3, 0.2])
DEVIATION = 0.1
SHAPE = (2, 1, 1)


class MixtureModel:
    """The exact eps_theta(x_t, t) = -sqrt(1 - alpha_bar) * score of q(x_t), by NumPy in float64."""

    def __init__(self, alphas_cumprod: np.ndarray) -> None:
        self.alphas_cumprod = np.asarray(alphas_cumprod, dtype=np.float64)

    def __call__(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x_t.detach().double().cpu().numpy().reshape(len(x_t), 2)
        alpha_bar = self.alphas_cumprod[t.cpu().numpy()][:, None]
        variance = alpha_bar * DEVIATION**2 + 1.0 - alpha_bar
        offsets = np.sqrt(alpha_bar)[:, :, None] * MEANS[None] - x[:, None, :]
        log_weights = np.log(WEIGHTS)[None] - (offsets**2).sum(-1) / (2.0 * variance)
        weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        score = (weights[:, :, None] * offsets).sum(1) / variance
        noise = -np.sqrt(1.0 - alpha_bar) * score
        return torch.from_numpy(noise).reshape(x_t.shape).to(x_t)


def draw(num: int, seed: int) -> np.ndarray:
    """Points of the mixture itself, (num, 2) float64."""
    generator = np.random.default_rng(seed)
    component = generator.choice(len(WEIGHTS), size=num, p=WEIGHTS)
    return MEANS[component] + DEVIATION * generator.standard_normal((num, 2))


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared energy distance of two samples (num, 2): 0 if and only if the distributions agree."""

    return float(2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean())
