"""Averages over the steps since the last logged one, the same to the bit for a run that was stopped in between."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

_NUM_QUARTILES = 4


@dataclass
class Window:
    """Sums over the steps of a window, all workers', added up step by step; goes into a checkpoint as JSON."""

    num_steps: int = 0
    losses: list[list[float]] = field(default_factory=lambda: [[0.0, 0.0] for _ in range(_NUM_QUARTILES)])
    """By quartile of t: the sum of the losses, and their number."""
    grad_norms: float = 0.0

    def averages(self) -> dict[str, float]:
        """Mean loss, in total and by quartile of t (as improved-diffusion logs it), and mean gradient norm."""
        loss_sums, counts = zip(*self.losses, strict=True)
        by_quartile = {
            f"train/loss_quartile_{number}": loss_sum / count
            for number, (loss_sum, count) in enumerate(self.losses, 1)
            if count
        }
        return {
            "train/loss": sum(loss_sums) / sum(counts),
            **by_quartile,
            "train/grad_norm": self.grad_norms / self.num_steps,
        }


class Units(NamedTuple):
    """The units of a global batch that losses are summed by."""

    num_units: int
    first: int
    """This worker's first."""
    num_images: int
    """In a unit; 0: all that this worker has."""


class WindowRecorder:
    """Collects what a window needs without waiting for the device; it does when the sums are asked for."""

    def __init__(
        self,
        timesteps: Callable[[Tensor], Tensor],
        num_timesteps: int,
        world_size: int,
        begun: dict[str, Any] | None,
        units: Units | None = None,
    ):
        """timesteps: the t of sample counters. begun: the window that a checkpoint holds, None for an empty one.

        units: sum each unit by itself and then the units in their order, so that sums do not depend on the workers.
        """
        self._timesteps, self._num_timesteps, self._world_size = timesteps, num_timesteps, world_size
        self._units = units or Units(1, 0, 0)
        self._window = Window(**begun) if begun else Window()
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, counters: Tensor, losses: Tensor, grad_norm: Tensor) -> None:
        """One step. counters: (b,) int64; losses: (b,) this worker's; grad_norm: () that of all workers."""
        self._steps.append((counters, losses, grad_norm))

    def window(self) -> Window:
        """The sums so far. Collective."""
        if self._steps:
            counters = [counters for counters, _, _ in self._steps]
            # Drawn again, for all steps at once.
            t = self._timesteps(torch.cat(counters)).split([len(some) for some in counters])
            by_unit = [self._sums(some, losses) for some, (_, losses, _) in zip(t, self._steps, strict=True)]
            sums = torch.stack(by_unit)
            if self._world_size > 1:
                # Exact for units: where one worker has a number, all others have a zero.
                dist.all_reduce(sums)
            sums = sums.sum(dim=1)
            norms = torch.stack([norm for _, _, norm in self._steps])
            for step_sums, norm in zip(sums.tolist(), norms.tolist(), strict=True):
                pairs = zip(self._window.losses, step_sums, strict=True)
                losses = [[total + loss, count + num] for (total, count), (loss, num) in pairs]
                self._window = Window(self._window.num_steps + 1, losses, self._window.grad_norms + norm)
            self._steps = []
        return self._window

    def take(self) -> Window:
        """The sums, and begin anew. Collective."""
        window = self.window()
        self._window = Window()
        return window

    def _sums(self, t: Tensor, losses: Tensor) -> Tensor:
        """(units, quartiles, 2), zero for the units of others."""
        num_units, first, num_images = self._units
        unit = first + torch.arange(len(losses)) // (num_images or len(losses))
        place = unit * _NUM_QUARTILES + t.cpu() * _NUM_QUARTILES // self._num_timesteps
        sums = torch.zeros(num_units * _NUM_QUARTILES, 2, dtype=torch.float64)
        # On the CPU, where the order of the additions is that of the images.
        values = losses.double().cpu()
        sums.index_add_(0, place, torch.stack([values, torch.ones_like(values)], dim=1))
        return sums.view(num_units, _NUM_QUARTILES, 2).to(losses.device)
