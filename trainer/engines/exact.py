"""The plain engine with gradients of the same bits on any number of workers (train.reduction exact).

Every unit of the global batch has forward and backward to itself, so its kernels see the same shapes whoever computes
it, and the units' gradients are added along one tree (trainer/engines/tree.py). An all-reduce adds in an order that
depends on the number of workers; so each worker is sent one part of all workers' partial sums instead, adds those up,
and gathers the parts.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.order import share
from trainer.engines.ddp import DdpEngine
from trainer.engines.tree import Node, cover, tree_sum


class ExactEngine(DdpEngine):
    """Replicated weights, gradients of units summed in an order that does not depend on the workers."""

    def _gradient(self, images: Tensor, counters: Tensor) -> Tensor:
        """The gradient of the global batch into .grad; returns this worker's losses, (b,)."""
        size = self._config.slice_images
        root = (0, self._config.train.global_batch_size // size)
        runs = [share(root[1], rank, self._worker.world_size) for rank in range(self._worker.world_size)]
        first = runs[self._worker.rank][0]
        units = list(zip(images.split(size), counters.split(size), strict=True))
        losses: list[Tensor] = []

        def unit_gradient(node: Node) -> Tensor | None:
            if node[1] - node[0] > 1:
                return None
            unit_losses, gradient = self._unit(*units[node[0] - first])
            losses.append(unit_losses)
            return gradient

        nodes = [cover(run, root) for run in runs]
        partial = torch.stack([tree_sum(node, unit_gradient) for node in nodes[self._worker.rank]])
        self._set_gradients(_sum_over_workers(partial, nodes, root) if self._distributed else partial[0])
        return torch.cat(losses)

    def _unit(self, images: Tensor, counters: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of a unit, and its part of the global gradient, of all parameters end to end."""
        parameters = list(self.module.parameters())
        self.optimizer.zero_grad(set_to_none=True)
        num_images = self._config.train.global_batch_size
        weight = 1 / (self._config.slice_images if self._clips_slices else num_images)
        losses = [self._backward_micro_batch(*part) for part in self._micro_batches(images, counters, weight)]
        if self._clips_slices:
            nn.utils.clip_grad_norm_(parameters, self._config.optim.max_grad_norm)
        gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        return torch.cat(losses), gradient.div_(self._num_slices) if self._clips_slices else gradient

    def _set_gradients(self, total: Tensor) -> None:
        parameters = list(self.module.parameters())
        for parameter, part in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)


def _sum_over_workers(partial: Tensor, nodes: list[list[Node]], root: Node) -> Tensor:
    """The value of the root, (P,), from each worker's values of its nodes, (its number of nodes, P). Collective.

    nodes: of each rank.
    """
    world_size, (num_nodes, num_elements) = len(nodes), partial.shape
    length = -(-num_elements // world_size)
    padded = nn.functional.pad(partial, (0, world_size * length - num_elements))
    sent = padded.view(num_nodes, world_size, length).transpose(0, 1).reshape(-1)
    counts = [len(some) for some in nodes]
    received = partial.new_empty(sum(counts) * length)
    dist.all_to_all_single(received, sent, [count * length for count in counts], [num_nodes * length] * world_size)
    values = dict(zip((node for some in nodes for node in some), received.split(length), strict=True))
    gathered = partial.new_empty(world_size * length)
    dist.all_gather_into_tensor(gathered, tree_sum(root, values.get))
    return gathered[:num_elements]
