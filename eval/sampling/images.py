"""Samples of a snapshot by image id: image i of a protocol is a function of (seed, i), not of who drew it with what."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eval.errors import NOT_FINITE, BlockedError, ReportAlive
from eval.protocol import Protocol
from models.likelihood import variational_bound
from models.pixels import from_uint8, to_uint8
from models.samplers import sample
from models.snapshot import Snapshot, load_snapshot


def load_network(checkpoint: str | os.PathLike[str], protocol: Protocol, device: str) -> Snapshot:
    """A checkpoint's snapshot, its network compiled at first use if the protocol says so.

    Raises BlockedError if a compiler is wanted and not there.
    """
    snapshot = load_snapshot(os.fspath(checkpoint), device)
    if not protocol.compiled:
        return snapshot
    variable, compiler = ("CXX", "g++") if device == "cpu" else ("CC", "gcc")  # of Inductor and of Triton
    compiler = os.environ.get(variable, compiler)
    if shutil.which(compiler) is None:
        raise BlockedError(
            f"compiler: {protocol.name} compiles its network and needs {compiler}, which is not on the PATH; install "
            f"it, name another in ${variable}, or take the protocol without _compiled"
        )
    # One shape, one compilation: sample_images keeps to it.
    compiled: Any = torch.compile(snapshot.model, dynamic=False)
    return replace(snapshot, model=compiled)


@torch.inference_mode()
def sample_images(
    snapshot: Snapshot,
    protocol: Protocol,
    first: int,
    count: int,
    batch_size: int | None = None,
    report_alive: ReportAlive = lambda: None,
) -> Tensor:
    """Images first .. first + count - 1 of the protocol: uint8 (count, C, H, W) on the CPU, rounded, not truncated.

    batch_size: how many are drawn at once (all by default); a compiled network always draws that many, and what is too
    many is dropped. A GPU out of memory halves it and goes on. report_alive: called after each step; it may raise.
    """
    device = next(snapshot.model.parameters()).device
    num_at_once = batch_size or count
    if not protocol.compiled:
        num_at_once = min(num_at_once, count)
    batches: list[Tensor] = []
    done = 0
    while done < count:
        num_wanted = min(num_at_once, count - done)
        num_drawn = num_at_once if protocol.compiled else num_wanted
        indices = torch.arange(first + done, first + done + num_drawn, device=device)
        try:
            batches.append(_draw(snapshot, protocol, indices, report_alive)[:num_wanted])
        except torch.OutOfMemoryError:
            if num_at_once == 1:
                raise
            num_at_once //= 2
            torch.cuda.empty_cache()
            continue
        done += num_wanted
    return torch.cat(batches)


def _draw(snapshot: Snapshot, protocol: Protocol, indices: Tensor, report_alive: ReportAlive) -> Tensor:
    with _precision(indices.device, protocol.precision):
        images = sample(
            snapshot.model,
            snapshot.diffusion,
            indices,
            protocol.seed,
            sampler=protocol.sampler,
            num_sampling_steps=protocol.num_sampling_steps,
            eta=protocol.eta,
            progress=lambda *_: report_alive(),
        )
    return to_uint8(_finite(images)).cpu()


@torch.inference_mode()
def bits_per_dim(
    snapshot: Snapshot, protocol: Protocol, images: Tensor, first: int, report_alive: ReportAlive = lambda: None
) -> Tensor:
    """Upper bound on the negative log-likelihood of each image in bits per dimension: (B,) float64, on the CPU.

    images: uint8 (B, C, H, W); image k's noise comes from (seed, first + k). Ho et al. 2020, Eq. 5, all T terms.
    """
    device = next(snapshot.model.parameters()).device
    x_0 = from_uint8(images.to(device))
    indices = torch.arange(first, first + len(images), device=device)
    with _precision(device, protocol.precision):
        bound = variational_bound(
            snapshot.model, snapshot.diffusion, x_0, indices, protocol.seed, progress=lambda *_: report_alive()
        )
    return _finite(bound.total).double().cpu()


def _finite(values: Tensor) -> Tensor:
    """The values as they are. Raises ValueError if one is NaN or infinite, as from a network that has diverged."""
    if not torch.isfinite(values).all():
        raise ValueError(NOT_FINITE)
    return values


@contextlib.contextmanager
def _precision(device: torch.device, precision: str) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        yield
