"""The plain engine: weights replicated on every worker, gradients averaged by torch's DistributedDataParallel."""

import math
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.launch import Worker
from data_pipeline.loader import Batch
from trainer.config.config import Config
from trainer.engines.base import MOMENTS, BaseEngine, NonFiniteError, StepResult, cpu_copies, make_adam
from trainer.objective import Objective


class DdpEngine(BaseEngine):
    """Replicated weights, gradients averaged by torch's DistributedDataParallel."""

    def __init__(self, model: nn.Module, objective: Objective, config: Config, worker: Worker):
        super().__init__(objective, config, worker)
        self.module = model.to(worker.device)
        self._distributed = worker.world_size > 1
        # The gradients of 1x1 convolutions come with other strides for the same memory layout, which is harmless.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        # Clipped slices are summed over workers once, here and not by torch; so is what must be exact.
        averages = self._distributed and not self._clips_slices and config.train.reduction == "fast"
        self._model: nn.Module = DistributedDataParallel(self.module) if averages else self.module
        self.optimizer = make_adam(self.module, config.optim)

    def step(self, batch: Batch) -> StepResult:
        """The update number `batch.step` (zero-based). Raises NonFiniteError before weights change."""
        images, counters = self._begin(batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._gradient(images, counters)
        parameters = list(self.module.parameters())
        grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # Reading the norm waits for the device; without it one NaN would reach the weights, the EMA and a checkpoint.
        norm, max_norm = grad_norm.item(), self._config.optim.max_grad_norm
        if not math.isfinite(norm):
            raise NonFiniteError(batch, losses, grad_norm)
        if 0 < max_norm < norm and not self._clips_slices:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, grad_norm)
        self._set_learning_rate(self.optimizer.param_groups, batch.step)
        self.optimizer.step()
        return StepResult(losses, grad_norm)

    def model_state(self) -> dict[str, Tensor]:
        """Named weights in host memory. Collective: every rank calls it."""
        return cpu_copies(dict(self.module.named_parameters()))

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments in host memory, `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, and `step`."""
        moments: dict[str, Tensor] = {}
        step = torch.zeros(())
        for name, parameter in self.module.named_parameters():
            state = self.optimizer.state[parameter]
            moments |= {f"{moment}.{name}": state[moment] for moment in MOMENTS}
            step = state["step"]
        return cpu_copies({**moments, "step": step})

    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """The inverse of `model_state` and `optimizer_state`. KeyError or RuntimeError if names or shapes differ."""
        self.module.load_state_dict(model)
        for name, parameter in self.module.named_parameters():
            state = {m: optimizer[f"{m}.{name}"].to(parameter) for m in MOMENTS}
            # As Adam's fused call wants it.
            self.optimizer.state[parameter] = {**state, "step": optimizer["step"].to(parameter.device, copy=True)}

    def _gradient(self, images: Tensor, counters: Tensor) -> Tensor:
        """The gradient of the global batch into .grad; returns this worker's losses, (b,)."""
        return self._backward_slices(images, counters) if self._clips_slices else self._backward(images, counters)

    def _backward(self, images: Tensor, counters: Tensor) -> Tensor:
        """Gradient of the global batch's mean loss into .grad, in micro-batches; one all-reduce, at the last."""
        *others, last = self._micro_batches(images, counters, self._loss_weight)
        losses = []
        with self._without_sync():
            for part in others:
                losses.append(self._backward_micro_batch(*part))
        losses.append(self._backward_micro_batch(*last))
        return torch.cat(losses)

    def _backward_slices(self, images: Tensor, counters: Tensor) -> Tensor:
        """Each slice's mean gradient clipped, then averaged over all slices into .grad; one all-reduce at the end."""
        total = [torch.zeros_like(parameter) for parameter in self.module.parameters()]
        losses = self._sum_clipped_slices(self._slices(images, counters), total, 1 / self._num_slices)
        if self._distributed:
            _all_reduce_sum(total)
        for parameter, gradient in zip(self.module.parameters(), total, strict=True):
            parameter.grad = gradient
        return losses

    def _backward_micro_batch(self, images: Tensor, counters: Tensor, weight: float) -> Tensor:
        with self._autocast():
            losses = self._objective.losses(self._model, images, counters)
        (losses.sum() * weight).backward()
        return losses.detach()

    def _without_sync(self) -> AbstractContextManager[None]:
        return self._model.no_sync() if isinstance(self._model, DistributedDataParallel) else nullcontext()


def _all_reduce_sum(tensors: list[Tensor]) -> None:
    """Sum over workers, in place, as one message."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
