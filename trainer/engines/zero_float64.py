"""DeepSpeed in float64: it knows float32 masters and lower, but what it does with them holds for float64 as well.

For proofs that all engines train the same run (train.precision fp64), not for speed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

# DeepSpeed reduces and scatters in float32 at most; an all-reduce takes any dtype and gives the same sums.
ZERO_SETTINGS = {"reduce_scatter": False}


@contextmanager
def float64_masters(deepspeed: ModuleType) -> Iterator[None]:
    """An engine made inside keeps masters, gradients and messages in float64. It needs ZERO_SETTINGS."""
    engine = deepspeed.runtime.engine.DeepSpeedEngine
    optimizer = deepspeed.runtime.base_optimizer.ZeROOptimizer
    partitioner = deepspeed.runtime.zero.partition_parameters.Init
    with (
        patch.object(engine, "get_data_types", lambda self: (torch.float64, torch.float64)),
        patch.object(engine, "communication_data_type", torch.float64),
        patch.object(partitioner, "_set_dtype", _allow),
        patch.object(optimizer, "_configure_master_weights", _configure(optimizer._configure_master_weights)),
    ):
        yield


def float64_norm(zero: Any) -> None:
    """Have the optimizer of stage 1 or 2 measure gradients in float64; that of stage 3 does."""

    def norm(gradients: list[Tensor], _parameters: list[Tensor], norm_type: int = 2) -> Tensor:
        assert norm_type == 2
        square = torch.zeros((), dtype=torch.float64, device=zero.device)
        for gradient in gradients:
            square += gradient.detach().square().sum()
        dist.all_reduce(square, group=zero.dp_process_group)
        return square.sqrt()

    zero.get_grad_norm_direct = norm


def _allow(self: Any, *_: object) -> None:
    """The dtype of weights that are made inside of a stage 3 context, which ours are not; it may not be float64."""
    self.dtype = torch.float32


def _configure(original: Any) -> Any:
    def configure(self: Any, **settings: Any) -> torch.dtype:
        original(self, **settings)
        return torch.float64

    return configure
