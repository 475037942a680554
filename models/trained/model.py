"""A trained model in a user's hands: 8-bit images in and out, everything else is taken care of.

Images are NumPy arrays of uint8, (N, H, W, C) with C = 1 for grey and 3 for RGB, as in image files. All that is drawn
comes from (seed, image index) alone: not from the batch, the order of calls or torch's generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.checks import check, check_whole
from models import generation, philox
from models.likelihood import variational_bound
from models.pixels import from_uint8, to_uint8
from models.samplers import Progress, choose_process, sample
from models.snapshot import Snapshot
from models.trained.batches import batch_size_for
from models.trained.checkpoints import checkpoint_of
from models.trained.device import choose_device
from models.trained.registry_uri import open_snapshot

Images = NDArray[np.uint8]
NOISE_STREAM = "trained/noise"
_NUM_STAGES = 10


@dataclass(frozen=True)
class Stages:
    """Images on their way through the process."""

    images: Images
    """(B, N, H, W, C) uint8: of each image its N stages."""
    timesteps: list[int]
    """The N timesteps in [0, T) that the stages are at."""


@dataclass(frozen=True)
class TrainedModel:
    """A network with its averaged weights (EMA), and the diffusion process that it was trained for. See `load`."""

    place: Path
    """The checkpoint or snapshot that was loaded, or its name in a registry."""
    snapshot: Snapshot = field(repr=False)
    """The parts: `model`, a torch module in eval mode, `diffusion`, both configs, and `provenance`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        channels, height, width = self.snapshot.model_config.image_shape
        return height, width, channels

    @property
    def num_timesteps(self) -> int:
        """T, the timesteps of the diffusion process."""
        return self.snapshot.diffusion.num_timesteps

    @property
    def num_parameters(self) -> int:
        """Numbers in the weights."""
        return sum(parameter.numel() for parameter in self.snapshot.model.parameters())

    def sample(
        self,
        num_images: int = 1,
        *,
        seed: int = 0,
        sampler: str = "ddpm",
        num_sampling_steps: int | None = None,
        eta: float = 0.0,
        first_index: int = 0,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Images:
        """Draw images first_index ... first_index + num_images - 1 of a seed: (num_images, H, W, C) uint8.

        sampler: ddpm is the paper's algorithm 2; ddim and dpm-solver++ need far fewer steps. num_sampling_steps: how
        many of the T timesteps to visit; all by default. eta: noise of ddim, in [0, 1]. batch_size: images made at a
        time, which bounds the memory; fewer of large images by default. progress: called after each step of a batch.
        Raises ValueError for a value out of its range.
        """
        check_whole("num_images", num_images, 1)
        check_whole("first_index", first_index, 0)
        if eta and sampler != "ddim":
            raise ValueError(f"eta is {eta}, but only the sampler ddim has it: leave it out for {sampler}")
        process = choose_process(self.snapshot.diffusion, sampler, num_sampling_steps)
        indices = torch.arange(first_index, first_index + num_images)
        model, made = self.snapshot.model, []
        for batch in indices.split(batch_size_for(batch_size, self.snapshot.model_config)):
            made.append(_shown(sample(model, process, batch, seed, sampler, eta=eta, progress=progress)))
        return np.concatenate(made)

    def interpolate(
        self,
        first: Images,
        second: Images,
        weights: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        *,
        timestep: int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Images:
        """Images between two of shape (H, W, C): (len(weights), H, W, C) uint8 (section 4.4, figure 8).

        weights: lambda in [0, 1]; 0 gives the first image, diffused and denoised. timestep: in [0, T), how far both are
        diffused before they are mixed; T / 2 by default. Raises ValueError for images of another shape, and out of
        these ranges.
        """
        ends = self._numbers(np.stack([self._checked(image[None])[0] for image in (first, second)]))
        index = torch.zeros(1, dtype=torch.int64)
        model, diffusion = self.snapshot.model, self.snapshot.diffusion
        mixed = generation.interpolate(
            model, diffusion, ends[:1], ends[1:], weights, index, seed, timestep, progress=progress
        )
        return _shown(mixed[0])

    def variations(
        self,
        image: Images,
        num_variations: int = 8,
        *,
        timestep: int,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Images:
        """Images that share the x_t of one, (H, W, C), and differ in the way back: (num_variations, H, W, C) uint8.

        timestep: in [0, T), where x_t lies; the larger, the less they share (figure 7). Raises ValueError for an image
        of another shape, and out of these ranges.
        """
        x_0 = self._numbers(self._checked(image[None]))[0]
        model, diffusion = self.snapshot.model, self.snapshot.diffusion
        return _shown(generation.variations(model, diffusion, x_0, num_variations, seed, timestep, progress=progress))

    def progressive(
        self,
        num_images: int = 1,
        *,
        every: int | None = None,
        seed: int = 0,
        sampler: str = "ddpm",
        num_sampling_steps: int | None = None,
        first_index: int = 0,
        progress: Progress | None = None,
    ) -> Stages:
        """What the network takes the images of `sample` for on the way to them (section 4.3, figure 6).

        Returns the estimates of x_0 at every `every`-th step, noisiest first; the last are the images themselves under
        ddpm and ddim. every: a tenth of the steps by default. Other parameters, and errors, as of `sample`.
        """
        check_whole("num_images", num_images, 1)
        check_whole("first_index", first_index, 0)
        num_steps = self.num_timesteps if num_sampling_steps is None else num_sampling_steps
        every = max(1, num_steps // _NUM_STAGES) if every is None else every
        indices = torch.arange(first_index, first_index + num_images)
        model, diffusion = self.snapshot.model, self.snapshot.diffusion
        seen = generation.progressive(
            model, diffusion, indices, seed, every, sampler, num_sampling_steps, progress=progress
        )
        return Stages(_shown(seen.x_0), seen.timesteps)

    def noise(self, images: Images, timesteps: Sequence[int] | None = None, *, seed: int = 0) -> Stages:
        """Images (B, H, W, C) as noise destroys them: x_t of q(x_t | x_0) at each of the timesteps (equation 4).

        timesteps: each in [0, T); ten from 0 to T - 1 by default. The noise of image i is the same at all of them.
        What lies beyond black and white is cut off for show. Raises ValueError out of these ranges.
        """
        diffusion, last = self.snapshot.diffusion, self.num_timesteps - 1
        if timesteps is None:
            timesteps = sorted({round(last * stage / (_NUM_STAGES - 1)) for stage in range(_NUM_STAGES)})
        for timestep in timesteps:
            check_whole("timestep", timestep, 0, last)
        x_0 = self._numbers(self._checked(images))
        noise = philox.normal(seed, NOISE_STREAM, torch.arange(len(x_0), device=x_0.device), x_0.shape[1:])
        at = [diffusion.q_sample(x_0, x_0.new_full((len(x_0),), t, dtype=torch.int64), noise) for t in timesteps]
        return Stages(_shown(torch.stack(at, dim=1)), list(timesteps))

    def bits_per_dim(
        self,
        images: Images,
        *,
        seed: int = 0,
        num_sampling_steps: int | None = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float64]:
        """An upper bound on each image's negative log-likelihood, in bits per dimension: (B,) float64 (equation 5).

        images: (B, H, W, C) uint8, measured a batch at a time. num_sampling_steps: bound the shorter chain that visits
        that many timesteps; all by default. Raises ValueError for images of another shape.
        """
        process = choose_process(self.snapshot.diffusion, "ddpm", num_sampling_steps)
        indices = torch.arange(len(self._checked(images)))
        totals = []
        for batch in indices.split(batch_size_for(None, self.snapshot.model_config)):
            x_0 = self._numbers(images[batch.numpy()])
            totals.append(variational_bound(self.snapshot.model, process, x_0, batch, seed, progress=progress).total)
        return torch.cat(totals).numpy()

    def _checked(self, images: Images) -> Images:
        fits = images.dtype == np.uint8 and images.shape[1:] == self.image_shape and len(images) > 0
        height, width, channels = self.image_shape
        allowed = f"of this model's size: uint8 of shape (N, {height}, {width}, {channels}), N at least 1"
        check(fits, "images", f"{images.dtype} of shape {images.shape}", allowed)
        return images

    def _numbers(self, images: Images) -> Tensor:
        """(B, C, H, W) float32 in [-1, 1], where the network is."""
        device = next(self.snapshot.model.parameters()).device
        return from_uint8(torch.from_numpy(np.ascontiguousarray(images)).to(device)).permute(0, 3, 1, 2).contiguous()


def load(
    place: str | Path, step: int | None = None, device: str = "auto", tracking_uri: str | None = None
) -> TrainedModel:
    """The trained model of a run's directory, a checkpoint, a snapshot, or models:/NAME@ALIAS of an MLflow registry.

    step: the checkpoint of a run's directory to take; its newest complete one by default. device: auto, cpu, cuda or
    cuda:N; auto takes a GPU if there is one, and computes in whole float32 there. tracking_uri: of the MLflow registry;
    $MLFLOW_TRACKING_URI by default. Raises FileNotFoundError if there is no such model, ValueError if its files are
    damaged or the device does not exist.
    """
    found = checkpoint_of(Path(place).expanduser(), step)
    return TrainedModel(found, open_snapshot(found, choose_device(device), tracking_uri))


def _shown(x: Tensor) -> Images:
    """(..., C, H, W) in [-1, 1] as (..., H, W, C) uint8."""
    return to_uint8(x).movedim(-3, -1).cpu().numpy()
