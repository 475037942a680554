"""The likelihood of a packed data set under a snapshot: the bound of `python -m models likelihood`, image by image."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from common.checks import check_whole
from data_pipeline.storage.dataset import Dataset
from eval.metrics.reference import ImageSource
from models.likelihood import Bound, variational_bound
from models.pixels import from_uint8
from models.samplers import choose_process
from models.snapshot import Snapshot
from models.trained.batches import batch_size_for

ShowProgress = Callable[[str, int], AbstractContextManager[Callable[[int, int], None]]]
"""(title, number of steps) -> a context that shows them; what it yields is called after each step."""


def dataset_bounds(
    snapshot: Snapshot,
    dataset: Dataset,
    num_images: int | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    show: ShowProgress = lambda title, num_steps: nullcontext(lambda done, total: None),
) -> tuple[list[Bound], list[int]]:
    """The bound of the first images of a data set, batch by batch, and the timesteps of their terms (Ho et al., Eq. 5).

    num_images: all by default. num_steps: of the chain that visits evenly spaced timesteps, all T by default. Image
    i's noise depends on (seed, i) alone. batch_size: images measured at a time, by default what fits a few gigabytes.
    A grey data set serves a model of 3 channels. Raises ValueError if the images do not fit the model or a number is
    out of range, DamagedDataError naming a sample that cannot be read.
    """
    count = len(dataset) if num_images is None else num_images
    check_whole("num_images", count, 1, len(dataset), "that is how many the data set has")
    at_once = batch_size_for(batch_size, snapshot.model_config)
    _check_shape(snapshot, dataset)
    process = choose_process(snapshot.diffusion, "ddpm", num_steps)
    bounds = []
    for indices, levels in _batches(dataset, snapshot.model_config.image_channels, count, at_once):
        with show(f"images {int(indices[0])} to {int(indices[-1])}", process.num_steps) as advance:
            x_0 = from_uint8(levels)
            bounds.append(variational_bound(snapshot.model, process, x_0, indices, seed, progress=advance))
    return bounds, process.timesteps.tolist()


def _batches(dataset: ImageSource, channels: int, count: int, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Sample numbers, (B,) int64, and their images, uint8 (B, C, H, W)."""
    for start in range(0, count, at_once):
        indices = torch.arange(start, min(start + at_once, count))
        images = torch.stack([torch.from_numpy(dataset.read(index)) for index in indices.tolist()])
        yield indices, images.permute(0, 3, 1, 2).expand(-1, channels, -1, -1)


def _check_shape(snapshot: Snapshot, dataset: Dataset) -> None:
    height, width, channels = dataset.image_shape
    wanted = snapshot.model_config.image_shape
    if (height, width) != wanted[1:] or channels not in (1, wanted[0]):
        raise ValueError(
            f"the data set's images are {height} x {width} with {channels} channels, the model's {wanted[1]} x "
            f"{wanted[2]} with {wanted[0]}: pack the data again with --image-size {wanted[1]}"
        )
