"""What an engine is: one optimiser update over all workers, and what all engines share.

An engine is given this worker's part of a global batch. Losses are summed over images and divided by the global batch
size G, so that workers with one image more or less weigh right.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cluster.launch import Worker
from data_pipeline.loader import Batch
from models.ema import ExponentialMovingAverage
from models.precision import use_tf32
from trainer.config.config import Config
from trainer.config.sections import EmaConfig, OptimConfig
from trainer.objective import Objective

MOMENTS = ("exp_avg", "exp_avg_sq")


def cpu_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in host memory, as safetensors writes them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


class StepResult(NamedTuple):
    """What an update was made from."""

    losses: Tensor
    """(b,) one loss per image of this worker, detached."""
    grad_norm: Tensor
    """() L2 norm of the global gradient before the global clip, after the slices' clips; equal on all workers."""


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


def make_adam(model: nn.Module, optim: OptimConfig) -> torch.optim.Adam:
    """Adam over all parameters, as in the paper, in one call for all of them."""
    betas = (optim.beta1, optim.beta2)
    return torch.optim.Adam(model.parameters(), lr=optim.learning_rate, betas=betas, eps=optim.eps, fused=True)


Part = tuple[Tensor, Tensor, float]
"""Images (b, C, H, W) uint8, their sample counters (b,) int64, and the weight of each of their losses."""


class BaseEngine(ABC):
    """What the engines share: schedule, precision, micro-batches, and the clipping of slices."""

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
        """Images and counters on the device."""
        if not self.module.training:  # a walk over all modules
            self.module.train()
        images = batch.images.to(self._worker.device, non_blocking=True)
        return images, batch.counters.to(self._worker.device, non_blocking=True)

    def _micro_batches(self, images: Tensor, counters: Tensor, weight: float) -> list[Part]:
        """The images in parts of at most `train.max_images_per_pass`, each loss with the weight given."""
        return _split(images, counters, self._config.train.max_images_per_pass or len(images), weight)

    def _slices(self, images: Tensor, counters: Tensor) -> list[Part]:
        """The batch in the parts that are clipped each for itself; the weights give each slice's mean loss."""
        size = self._config.optim.clip_slice_images
        return _split(images, counters, size, 1 / size)

    @property
    def _num_slices(self) -> int:
        """In a global batch."""
        return self._config.train.global_batch_size // self._config.optim.clip_slice_images

    @abstractmethod
    def _backward_micro_batch(self, images: Tensor, counters: Tensor, weight: float) -> Tensor:
        """Add the gradient of weight times the summed loss to .grad. Returns the losses, (b,), detached."""

    def _sum_clipped_slices(self, slices: Iterable[Part], total: list[Tensor], slice_weight: float) -> Tensor:
        """Add each slice's mean gradient, clipped to max_grad_norm, times slice_weight to `total`, which begins as 0.

        The authors clip on each of 8 TPU cores before the all-reduce (tpu_utils.py:164-177); a slice is their core's
        share, here a number of images, so that the result does not depend on the hardware.

        total: one tensor per parameter, of the whole parameter's shape. Returns the losses, (b,); .grad is left at 0.
        """
        parameters = list(self.module.parameters())
        losses = []
        for images, counters, weight in slices:
            for part in self._micro_batches(images, counters, weight):
                losses.append(self._backward_micro_batch(*part))
            nn.utils.clip_grad_norm_(parameters, self._config.optim.max_grad_norm)
            # Their sizes are those of whole parameters also where an engine has divided the parameters by now.
            gradients = [p.grad for p in parameters if p.grad is not None]
            torch._foreach_add_(total, gradients, alpha=slice_weight)
            torch._foreach_zero_(gradients)
        return torch.cat(losses)

    def _autocast(self) -> torch.autocast:
        bf16 = self._config.train.precision == "bf16"
        return torch.autocast(self._worker.device.type, torch.bfloat16, enabled=bf16)

    def _set_learning_rate(self, groups: list[dict[str, Any]], step: int) -> None:
        for group in groups:
            group["lr"] = self.learning_rate(step)


def _split(images: Tensor, counters: Tensor, size: int, weight: float) -> list[Part]:
    return [(*part, weight) for part in zip(images.split(size), counters.split(size), strict=True)]
