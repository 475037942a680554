"""Samples of a snapshot by image id: image i of a protocol is a function of (seed, i), not of who drew it with what."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from eval.protocol import Protocol
from models.likelihood import variational_bound
from models.samplers import sample, to_uint8
from models.snapshot import Snapshot


@torch.inference_mode()
def sample_images(
    snapshot: Snapshot, protocol: Protocol, first: int, count: int, batch_size: int | None = None
) -> Tensor:
    """Images first .. first + count - 1 of the protocol: uint8 (count, C, H, W) on the CPU, rounded, not truncated.

    batch_size: how many are drawn at once (all by default). A GPU out of memory halves it and goes on.
    """
    device = next(snapshot.model.parameters()).device
    num_at_once = min(batch_size or count, count)
    batches: list[Tensor] = []
    done = 0
    while done < count:
        indices = torch.arange(first + done, first + min(done + num_at_once, count), device=device)
        try:
            batches.append(_draw(snapshot, protocol, indices))
        except torch.OutOfMemoryError:
            if num_at_once == 1:
                raise
            num_at_once //= 2
            torch.cuda.empty_cache()
            continue
        done += len(indices)
    return torch.cat(batches)


def _draw(snapshot: Snapshot, protocol: Protocol, indices: Tensor) -> Tensor:
    with _precision(indices.device, protocol.precision):
        images = sample(
            snapshot.model,
            snapshot.diffusion,
            indices,
            protocol.seed,
            sampler=protocol.sampler,
            num_sampling_steps=protocol.num_sampling_steps,
            eta=protocol.eta,
        )
    return to_uint8(images).cpu()


@torch.inference_mode()
def bits_per_dim(snapshot: Snapshot, protocol: Protocol, images: Tensor, first: int) -> Tensor:
    """Upper bound on the negative log-likelihood of each image in bits per dimension: (B,) float64, on the CPU.

    images: uint8 (B, C, H, W); image k's noise comes from (seed, first + k). Ho et al. 2020, Eq. 5, all T terms.
    """
    device = next(snapshot.model.parameters()).device
    x_0 = images.to(device, torch.float32) / 127.5 - 1
    indices = torch.arange(first, first + len(images), device=device)
    with _precision(device, protocol.precision):
        bound = variational_bound(snapshot.model, snapshot.diffusion, x_0, indices, protocol.seed)
    return bound.total.double().cpu()


@contextlib.contextmanager
def _precision(device: torch.device, precision: str) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        yield
