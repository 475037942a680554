"""ZeRO by DeepSpeed. Stage 1 divides Adam's moments among the workers, stage 2 the gradients too, stage 3 the weights.

The arithmetic of a step is that of the plain engine: the same losses, one all-reduce's sum, the same clip and Adam.
DeepSpeed keeps fp32 masters in flat buffers; states are read and written through views of them, by name.
"""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.launch import Worker
from data_pipeline.loader import Batch
from models.ema import ExponentialMovingAverage
from models.kernels.dropout import MaskSource
from trainer.config.config import Config
from trainer.config.sections import EmaConfig
from trainer.engines.base import MOMENTS, BaseEngine, NonFiniteError, StepResult, cpu_copies, make_adam
from trainer.engines.sharded_ema import Shard, ShardedExponentialMovingAverage
from trainer.engines.zero_float64 import ZERO_SETTINGS, float64_masters, float64_norm
from trainer.objective import Objective

# Elements that DeepSpeed collects before it reduces gradients; its default of 5e8 would allocate 2 GB for any model.
_MAX_BUCKET_ELEMENTS = 20_000_000


class ZeroEngine(BaseEngine):
    """DeepSpeed with the stage that `workers.strategy` names."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        config: Config,
        worker: Worker,
        num_whole_elements: int = 100_000,
    ):
        """num_whole_elements: stage 3 leaves weights of at most this size whole on every worker, to save messages."""
        super().__init__(objective, config, worker)
        deepspeed = _import_deepspeed(worker)
        self._stage = int(config.workers.strategy.removeprefix("zero"))
        self.module = model.to(worker.device)
        self._adam = make_adam(self.module, config.optim)
        # Before DeepSpeed divides the weights, after which their sizes are those of the parts.
        self._shapes = {name: parameter.shape for name, parameter in self.module.named_parameters()}
        in_float64 = objective.dtype == torch.float64
        with float64_masters(deepspeed) if in_float64 else nullcontext():
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=_Autocast(self.module, self._autocast),
                optimizer=self._adam,
                config=self._deepspeed_config(num_whole_elements, ZERO_SETTINGS if in_float64 else {}),
            )
        if in_float64 and self._stage < 3:
            float64_norm(self._zero)
        # DeepSpeed makes a group of its own, with torch's timeout of up to half an hour.
        timeout = timedelta(seconds=config.workers.collective_timeout_seconds)
        dist.set_timeout(timeout, self._zero.dp_process_group)
        self._create_moments()

    def make_ema(self, config: EmaConfig) -> ExponentialMovingAverage:
        """An average of the weights as they are now: at stage 3 each worker averages its own part."""
        if self._stage < 3:
            return super().make_ema(config)
        shards = {name: self._shard(name) for name in self._shapes}
        return ShardedExponentialMovingAverage(shards, config.decay, use_num_updates=config.warmup)

    def step(self, batch: Batch) -> StepResult:
        """The update number `batch.step` (zero-based). Raises NonFiniteError on all workers before weights change."""
        images, counters = self._begin(batch)
        losses = self._backward_slices(images, counters) if self._clips_slices else self._backward(images, counters)
        self._set_learning_rate(self._adam.param_groups, batch.step)
        self._engine.step()
        # DeepSpeed takes no step where the global norm, which all workers share, is not finite.
        if self._zero.overflow:
            raise NonFiniteError(batch, losses, self._grad_norm())
        return StepResult(losses, self._grad_norm())

    def model_state(self) -> dict[str, Tensor]:
        """Full named fp32 weights in host memory. Collective: every rank calls it."""
        return {name: self._shard(name).gather().cpu() for name in self._shapes}

    def optimizer_state(self) -> dict[str, Tensor]:
        """Adam's moments in host memory, `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, and `step`. Collective."""
        moments = {
            f"{moment}.{name}": self._shard(name, moment).gather().cpu() for name in self._shapes for moment in MOMENTS
        }
        return cpu_copies({**moments, "step": self._adam.state[self._masters()[0]]["step"]})

    @torch.no_grad()
    def load_state(self, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> None:
        """The inverse of `model_state` and `optimizer_state`. KeyError or RuntimeError if names or shapes differ."""
        if model.keys() != self._shapes.keys():
            odd = sorted(model.keys() ^ self._shapes.keys())
            raise RuntimeError(f"the weights do not fit this model: {len(odd)} names differ, the first is {odd[0]}")
        for name, shape in self._shapes.items():
            for moment, full in ((None, model[name]), *((m, optimizer[f"{m}.{name}"]) for m in MOMENTS)):
                if full.shape != shape:
                    raise RuntimeError(f"{name} has shape {tuple(full.shape)}, the model's is {tuple(shape)}")
                shard = self._shard(name, moment)
                shard.view.copy_(shard.part_of(full))
        for master in self._masters():
            self._adam.state[master]["step"].copy_(optimizer["step"])
        self._publish_masters()

    def _backward(self, images: Tensor, counters: Tensor) -> Tensor:
        """Gradient of the global batch's mean loss into DeepSpeed's buffers, in micro-batches."""
        parts = self._micro_batches(images, counters, self._loss_weight)
        # Each micro-batch is a collective, so all workers need as many as the busiest; the added ones weigh nothing.
        parts += [(images[:1], counters[:1], 0.0)] * (self._most_micro_batches() - len(parts))
        losses = []
        for number, part in enumerate(parts, 1):
            self._engine.set_gradient_accumulation_boundary(number == len(parts))
            losses.append(self._backward_micro_batch(*part))
        return torch.cat(losses)[: len(images)]

    def _backward_slices(self, images: Tensor, counters: Tensor) -> Tensor:
        """Each slice's mean gradient clipped, then averaged over all slices. Needs memory for all gradients."""
        dtype, device = self._objective.dtype, self._worker.device
        total = [torch.zeros(shape, dtype=dtype, device=device) for shape in self._shapes.values()]
        slices = self._slices(images, counters)
        # Each micro-batch is a collective at stage 3, so all workers need as many slices as the busiest.
        most_slices = math.ceil(self._num_slices / self._worker.world_size)
        slices += [(*slices[0][:2], 0.0)] * (most_slices - len(slices))
        with self._engine.coalesce_grad_reduction():
            losses = self._sum_clipped_slices(slices, total, self._worker.world_size / self._num_slices)
            torch._foreach_copy_([p.grad for p in self.module.parameters() if p.grad is not None], total)
        return losses[: len(images)]

    def _backward_micro_batch(self, images: Tensor, counters: Tensor, weight: float) -> Tensor:
        losses = self._objective.losses(self._engine, images, counters)
        self._engine.backward(losses.sum() * weight, scale_wrt_gas=False)
        return losses.detach()

    def _most_micro_batches(self) -> int:
        """Of the worker with most images."""
        most_images = math.ceil(self._config.train.global_batch_size / self._worker.world_size)
        return math.ceil(most_images / (self._config.train.max_images_per_pass or most_images))

    def _grad_norm(self) -> Tensor:
        return torch.as_tensor(self._zero._global_grad_norm).detach()

    def _masters(self) -> list[Tensor]:
        """The flat fp32 tensors that Adam steps: this worker's parts of all weights, end to end."""
        if self._stage == 3:
            return self._zero.fp32_partitioned_groups_flat
        return self._zero.single_partition_of_fp32_groups

    def _shard(self, name: str, moment: str | None = None) -> Shard:
        """This worker's part of a weight's fp32 master, or of one of its moments."""
        parameter, shape = self.module.get_parameter(name), self._shapes[name]
        if self._stage == 3:
            part = self._zero.get_local_fp32_param(parameter, moment).detach()
            start = self._worker.rank * len(part)
            # The last parts are padded to the size of the first.
            return Shard(shape, start, part[: max(shape.numel() - start, 0)])
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return Shard(shape, 0, self._masters()[0].detach()[:0])
        return Shard(shape, mapping.lp_fragment_address.start, mapping.get_hp_fragment(moment).detach())

    def _create_moments(self) -> None:
        """Adam's state as it is before its first step, which would create it; a checkpoint is loaded into it."""
        for master in self._masters():
            moments = {moment: torch.zeros_like(master, requires_grad=False) for moment in MOMENTS}
            self._adam.state[master] = {"step": torch.zeros((), device=master.device), **moments}
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()

    def _publish_masters(self) -> None:
        """Give the masters to the weights that forward uses, as DeepSpeed does at the end of a step."""
        if self._stage < 3:
            self._zero.update_lp_params()
            return
        self._zero._partition_all_parameters()
        for group in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(group)
        whole = self._zero.persistent_parameters
        if whole:
            whole[0].all_gather(whole)

    def _deepspeed_config(self, num_whole_elements: int, zero_settings: dict[str, Any]) -> dict[str, Any]:
        num_elements = sum(shape.numel() for shape in self._shapes.values())
        return {
            # DeepSpeed asserts that these make up the batch size, and uses them for its own statistics alone.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": 0.0 if self._clips_slices else self._config.optim.max_grad_norm,
            "zero_optimization": {
                "stage": self._stage,
                "reduce_bucket_size": min(num_elements, _MAX_BUCKET_ELEMENTS),
                "stage3_param_persistence_threshold": num_whole_elements,
                **zero_settings,
            },
        }


class _Autocast(nn.Module):
    """The network under our autocast: DeepSpeed switches off any that is on outside of it."""

    def __init__(self, network: nn.Module, autocast: Callable[[], torch.autocast]):
        super().__init__()
        self.network, self._autocast = network, autocast

    def forward(self, x_t: Tensor, t: Tensor, masks: MaskSource | None = None) -> Tensor:
        with self._autocast():
            return self.network(x_t, t, masks)


def _import_deepspeed(worker: Worker) -> ModuleType:
    """DeepSpeed on this worker's device and in its process group; one of one process if there is none."""
    if worker.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["LOCAL_RANK"] = str(worker.device.index if worker.device.type == "cuda" else worker.rank)
    if not dist.is_initialized():
        backend = "nccl" if worker.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    import deepspeed

    # Its CPU all-reduce over shared memory is compiled when first used, and two runs at once would share its segment.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
