"""From a batch of bytes to one loss per image: flip, scale, draw t, noise and masks by position, L_simple (Eq. 14)."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from models.diffusion import GaussianDiffusion
from trainer import randomness


@dataclass(frozen=True)
class Objective:
    """What is minimised. Called by an engine with the module to differentiate through."""

    diffusion: GaussianDiffusion
    seed: int
    horizontal_flip: bool
    dtype: torch.dtype = torch.float32

    def losses(self, model: nn.Module, images: Tensor, counters: Tensor) -> Tensor:
        """images: (b, C, H, W) uint8; counters: (b,) int64 sample counters. Returns (b,) losses, as Objective.dtype."""
        x_0 = self.prepare(images, counters)
        t = self.timesteps(counters)
        eps = randomness.noise(self.seed, counters, tuple(x_0.shape[1:]), self.dtype)
        masks = randomness.dropout_masks(self.seed, counters)
        return self.diffusion.loss_per_image(partial(model, masks=masks), x_0, t, eps)

    def prepare(self, images: Tensor, counters: Tensor) -> Tensor:
        """uint8 of any strides to planes in [-1, 1], the draws that `flips` selects mirrored."""
        x_0 = images.to(self.dtype, memory_format=torch.contiguous_format) / 127.5 - 1
        if self.horizontal_flip:
            mirrored = randomness.flips(self.seed, counters)[:, None, None, None]
            x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        return x_0

    def timesteps(self, counters: Tensor) -> Tensor:
        """The t of each draw, (b,) int64."""
        return randomness.timesteps(self.seed, counters, self.diffusion.num_timesteps)
