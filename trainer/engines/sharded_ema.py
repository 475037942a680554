"""An average of weights that are divided among workers: each averages its own part, without communication."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from models.ema import ExponentialMovingAverage


class Shard(NamedTuple):
    """This worker's part of a flattened tensor of shape `shape`: a view of its elements [start, start + len(view)).

    The workers' parts cover the tensor without overlap; a part may be empty.
    """

    shape: torch.Size
    start: int
    view: Tensor

    def part_of(self, full: Tensor) -> Tensor:
        """The elements of `full`, a tensor of the shape divided, that belong to this worker."""
        return full.flatten()[self.start : self.start + len(self.view)]

    def gather(self) -> Tensor:
        """The full tensor, on every worker. Collective."""
        whole = torch.zeros(self.shape.numel(), dtype=self.view.dtype, device=self.view.device)
        whole[self.start : self.start + len(self.view)] = self.view
        # Where one worker has a number all others have a zero, so that the sum is exact.
        dist.all_reduce(whole)
        return whole.view(self.shape)


class ShardedExponentialMovingAverage(ExponentialMovingAverage):
    """The same average as its parent's, held in parts. named_state is collective and gives full tensors."""

    def __init__(self, shards: Mapping[str, Shard], decay: float = 0.9999, use_num_updates: bool = False) -> None:
        """shards: of the live weights, by name; read at each update."""
        # The parent holds weak references only, and a view has no other owner.
        self._shards = dict(shards)
        super().__init__({name: shard.view for name, shard in shards.items()}, decay, use_num_updates)

    def named_state(self) -> dict[str, Tensor]:
        """The full averages, float32 or float64 as the weights are, in host memory. Collective: every rank calls it."""
        averages = zip(self.names, self.shadow_params, strict=True)
        return {name: self._shards[name]._replace(view=average).gather().cpu() for name, average in averages}

    def load_named_state(self, tensors: Mapping[str, Tensor], num_updates: int, decay: float) -> None:
        """The parent's, from full tensors. Raises ValueError if the decay, a name or a shape does not fit."""
        for name, shard in self._shards.items():
            if name in tensors and tensors[name].shape != shard.shape:
                raise ValueError(
                    f"EMA state does not fit this model: {name} has shape {tuple(tensors[name].shape)}, "
                    f"the model's is {tuple(shard.shape)}"
                )
        known = {n: self._shards[n].part_of(t) if n in self._shards else t for n, t in tensors.items()}
        super().load_named_state(known, num_updates, decay)
