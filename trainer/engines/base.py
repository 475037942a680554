"""One optimiser update over all workers: forward, backward, clipping, all-reduce, Adam.

An engine is handed this worker's part of a global batch. Losses are summed over images and divided by the global batch
size G, so that workers with one image more or less weigh right.
"""

import math
import warnings
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.launch import Worker
from data_pipeline.loader import Batch
from models.ema import ExponentialMovingAverage
from models.precision import use_tf32
from trainer import randomness
from trainer.config.config import Config, EmaConfig, OptimConfig
from trainer.objective import Objective

MOMENTS = ("exp_avg", "exp_avg_sq")


def cpu_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory, as safetensors writes them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


class StepResult(NamedTuple):
    """losses: (b,) this worker's loss an image, detached; grad_norm: () L2 norm of the global gradient before the
    global clip (after the slices' clips), equal on all workers."""

    losses: Tensor
    grad_norm: Tensor


class NonFiniteError(FloatingPointError):
    """A gradient was NaN or infinite; raised on all workers before any weight changed.

    batch, losses: this worker's, (b,) for finding the sample that did it.
    """

    def __init__(self, batch: Batch, losses: Tensor, grad_norm: Tensor):
        super().__init__(f"the gradient of step {batch.step} is not finite (norm {grad_norm.item()})")
        self.batch, self.losses = batch, losses


class Engine(Protocol):
    """What the loop, the hooks and the checkpoints know of an engine, whatever divides the work among the workers.

    The state methods are collective: every rank calls them, in the same order. States are engine-neutral: what one
    engine gives at one world size, any other takes at any world size.
    """

    module: nn.Module

    def step(self, batch: Batch) -> StepResult:
        """The update number `batch.step` (zero-based). Raises NonFiniteError on all workers before weights change."""

    def learning_rate(self, step: int) -> float:
        """The rate of update number `step`."""

    def make_ema(self, config: EmaConfig) -> ExponentialMovingAverage:
        """An average of the weights as they are now; its named_state and load_named_state are collective."""

    def model_state(self) -> dict[str, Tensor]:
        """Full named weights in host memory, names as in the plain module."""

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments in host memory, `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, and `step`."""

    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """The inverse of `model_state` and `optimizer_state`. KeyError or RuntimeError if names or shapes differ."""


def make_engine(model: nn.Module, objective: Objective, config: Config, worker: Worker) -> Engine:
    """The engine that `workers.strategy` names. model: on any device, the same weights on every worker."""
    if config.workers.compile:
        model.compile()  # in place: its parameters keep their names
    if config.workers.strategy == "ddp":
        return DdpEngine(model, objective, config, worker)
    # DeepSpeed takes seconds to import, and only these engines need it.
    from trainer.engines.zero import ZeroEngine

    return ZeroEngine(model, objective, config, worker)


def make_adam(model: nn.Module, optim: OptimConfig) -> torch.optim.Adam:
    """Adam over all parameters, as in the paper, in one call for all of them."""
    betas = (optim.beta1, optim.beta2)
    return torch.optim.Adam(model.parameters(), lr=optim.learning_rate, betas=betas, eps=optim.eps, fused=True)


class BaseEngine:
    """What the engines share: schedule, precision, dropout's seeds, and passes of bounded size."""

    module: nn.Module

    def __init__(self, objective: Objective, config: Config, worker: Worker):
        self._objective, self._config, self._worker = objective, config, worker
        # Engines divide the gradients they sum by the number of workers.
        self._loss_weight = worker.world_size / config.train.global_batch_size
        use_tf32(config.train.precision == "tf32")

    def learning_rate(self, step: int) -> float:
        """Linear warm-up from 0 at step 0, then constant (the authors' code)."""
        optim = self._config.optim
        return optim.learning_rate * (min(step / optim.warmup_steps, 1.0) if optim.warmup_steps else 1.0)

    def make_ema(self, config: EmaConfig) -> ExponentialMovingAverage:
        """An average of the weights as they are now, whole on every worker."""
        return ExponentialMovingAverage(
            dict(self.module.named_parameters()), config.decay, use_num_updates=config.warmup
        )

    @property
    def _clips_slices(self) -> bool:
        return self._config.optim.clip_scope == "slice" and self._config.optim.max_grad_norm > 0

    def _begin(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Seed dropout for this step; images and counters on the device."""
        randomness.seed_dropout(self._config.train.seed, batch.step, self._worker.rank)
        if not self.module.training:  # a walk over all modules
            self.module.train()
        images = batch.images.to(self._worker.device, non_blocking=True)
        return images, batch.counters.to(self._worker.device, non_blocking=True)

    def _passes(self, images: Tensor, counters: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The batch in parts of at most `train.max_images_per_pass` images."""
        size = self._config.train.max_images_per_pass or len(images)
        return list(zip(images.split(size), counters.split(size), strict=True))

    def _slices(self, images: Tensor, counters: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The batch in the parts that are clipped each for itself."""
        size = self._config.optim.clip_slice_images
        return list(zip(images.split(size), counters.split(size), strict=True))

    def _autocast(self) -> torch.autocast:
        bf16 = self._config.train.precision == "bf16"
        return torch.autocast(self._worker.device.type, torch.bfloat16, enabled=bf16)

    def _set_learning_rate(self, groups: list[dict[str, Any]], step: int) -> None:
        for group in groups:
            group["lr"] = self.learning_rate(step)


class DdpEngine(BaseEngine):
    """Replicated weights, gradients averaged by torch's DistributedDataParallel."""

    def __init__(self, model: nn.Module, objective: Objective, config: Config, worker: Worker):
        super().__init__(objective, config, worker)
        self.module = model.to(worker.device)
        self._distributed = worker.world_size > 1
        # The gradients of 1x1 convolutions come with other strides for the same memory layout, which is harmless.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        self._model: nn.Module = DistributedDataParallel(self.module) if self._distributed else self.module
        self.optimizer = make_adam(self.module, config.optim)

    def step(self, batch: Batch) -> StepResult:
        """The update number `batch.step` (zero-based). Raises NonFiniteError before weights change."""
        images, counters = self._begin(batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward_slices(images, counters) if self._clips_slices else self._backward(images, counters)
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

    def _backward(self, images: Tensor, counters: Tensor) -> Tensor:
        """Gradient of the global batch's mean loss into .grad; passes of bounded size, one all-reduce at the last."""
        passes = self._passes(images, counters)
        losses = []
        for number, (some_images, some_counters) in enumerate(passes, 1):
            with nullcontext() if number == len(passes) else self._without_sync():
                loss = self._losses(self._model, some_images, some_counters)
                (loss.sum() * self._loss_weight).backward()
            losses.append(loss.detach())
        return torch.cat(losses)

    def _backward_slices(self, images: Tensor, counters: Tensor) -> Tensor:
        """Each slice's mean gradient clipped to max_grad_norm, then averaged over all slices into .grad.

        The authors clip on each of 8 TPU cores before the all-reduce (tpu_utils.py:164-177); a slice is their core's
        share, here a number of images, so that the result does not depend on the hardware.
        """
        optim, parameters = self._config.optim, list(self.module.parameters())
        num_slices = self._config.train.global_batch_size // optim.clip_slice_images
        total: list[Tensor] = []
        losses = []
        for some_images, some_counters in self._slices(images, counters):
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(self._accumulate_slice(some_images, some_counters))
            nn.utils.clip_grad_norm_(parameters, optim.max_grad_norm)
            gradients = [p.grad for p in parameters if p.grad is not None]
            if total:
                torch._foreach_add_(total, gradients, alpha=1 / num_slices)
            else:
                torch._foreach_mul_(gradients, 1 / num_slices)
                total = gradients
        if self._distributed:
            _all_reduce_sum(total)
        for parameter, gradient in zip(parameters, total, strict=True):
            parameter.grad = gradient
        return torch.cat(losses)

    def _accumulate_slice(self, images: Tensor, counters: Tensor) -> Tensor:
        losses = []
        for some_images, some_counters in self._passes(images, counters):
            loss = self._losses(self.module, some_images, some_counters)
            (loss.sum() / len(images)).backward()
            losses.append(loss.detach())
        return torch.cat(losses)

    def _losses(self, model: nn.Module, images: Tensor, counters: Tensor) -> Tensor:
        with self._autocast():
            return self._objective.losses(model, images, counters)

    def _without_sync(self) -> "nullcontext[None]":
        return self._model.no_sync() if self._distributed else nullcontext()  # type: ignore[operator]


def _all_reduce_sum(tensors: list[Tensor]) -> None:
    """Sum over workers, in place, as one message."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
