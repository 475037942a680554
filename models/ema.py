"""Exponential moving average of the weights: torch-ema, updated by one fused call and saved by name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch_ema


class ExponentialMovingAverage(torch_ema.ExponentialMovingAverage):
    """torch-ema's class with the same rule and state; decay 0.9999 constant, as in the paper, by default.

    named_parameters: names and tensors, such as `model.named_parameters()`. The averages are float32 (float64
    for float64 tensors): in bfloat16 an update of 1e-4 would round away. use_num_updates: the warm-up
    min(decay, (1 + k) / (10 + k)) at update k, which short runs need. Raises ValueError if decay is outside [0, 1].
    """

    num_updates: int | None
    shadow_params: list[torch.Tensor]
    collected_params: list[torch.Tensor] | None

    def __init__(
        self,
        named_parameters: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
        decay: float = 0.9999,
        use_num_updates: bool = False,
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"EMA decay is {decay}: it must lie in [0, 1]; the paper uses 0.9999")
        named = dict(named_parameters)
        super().__init__(named.values(), decay, use_num_updates)
        self.names = list(named)
        self.shadow_params = [_at_least_float32(shadow) for shadow in self.shadow_params]
        self.update_count: int | None = 0

    @torch.no_grad()
    def update(self, parameters: Iterable[torch.Tensor] | None = None) -> None:
        """Move each average towards its parameter by 1 - decay; call once after every optimiser step."""
        current = self._get_parameters(parameters)
        if self.update_count is not None:
            self.update_count += 1
        if self.num_updates is not None:
            self.num_updates += 1
        weight = 1.0 - (self.decay if self.num_updates is None else self._decay_at(self.num_updates))
        current = [p if p.dtype == s.dtype else p.to(s.dtype) for s, p in zip(self.shadow_params, current, strict=True)]
        torch._foreach_lerp_(self.shadow_params, current, weight)

    @property
    def initial_weight_share(self) -> float:
        """Share of the initial weights in the average: the product of the decays used so far, in [0, 1].

        0.82 after 2,000 steps at 0.9999. NaN after loading a torch-ema state that does not tell its updates.
        """
        if self.update_count is None:
            return math.nan
        if self.num_updates is None:
            return self.decay**self.update_count
        # The warm-up is over where (1 + k) / (10 + k) reaches the decay; constant from there on.
        crossing = math.inf if self.decay == 1.0 else (10 * self.decay - 1) / (1 - self.decay)
        num_warm = int(min(self.update_count, max(0.0, crossing)))
        warm = math.prod(self._decay_at(k) for k in range(1, num_warm + 1))
        return warm * self.decay ** (self.update_count - num_warm)

    def named_state(self) -> dict[str, torch.Tensor]:
        """Copies of the averages, float32 (float64 of float64 tensors), by the names given at the start."""
        return {name: shadow.detach().clone() for name, shadow in zip(self.names, self.shadow_params, strict=True)}

    @torch.no_grad()
    def load_named_state(self, tensors: Mapping[str, torch.Tensor], num_updates: int, decay: float) -> None:
        """Continue from named_state's tensors, after num_updates updates with that decay.

        Raises ValueError if the decay is another one, or a name or shape does not fit.
        """
        self._check_decay(decay)
        if num_updates < 0:
            raise ValueError(f"num_updates is {num_updates}: it must not be negative")
        if set(tensors) != set(self.names):
            odd = sorted(set(tensors) ^ set(self.names))
            raise ValueError(f"EMA state does not fit this model: {len(odd)} names differ, the first is {odd[0]}")
        for name, shadow in zip(self.names, self.shadow_params, strict=True):
            if tensors[name].shape != shadow.shape:
                raise ValueError(
                    f"EMA state does not fit this model: {name} has shape {tuple(tensors[name].shape)}, "
                    f"the model's is {tuple(shadow.shape)}"
                )
        for name, shadow in zip(self.names, self.shadow_params, strict=True):
            shadow.copy_(tensors[name])
        self.update_count = num_updates
        if self.num_updates is not None:
            self.num_updates = num_updates

    def state_dict(self) -> dict[str, Any]:
        """torch-ema's state, with the number of updates also where the decay is constant."""
        return {**super().state_dict(), "update_count": self.update_count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch-ema's, but raises ValueError instead of taking over another decay or another warm-up rule."""
        self._check_decay(state_dict["decay"])
        if (state_dict["num_updates"] is None) != (self.num_updates is None):
            raise ValueError(
                "EMA state and this run differ in use_num_updates (warm-up of the decay): use the same setting"
            )
        places = [(shadow.device, shadow.dtype) for shadow in self.shadow_params]
        super().load_state_dict(state_dict)
        # torch-ema casts to the parameters' dtype, which for bfloat16 parameters would round the averages.
        self.shadow_params = [
            shadow.detach().to(device, dtype, copy=True)
            for shadow, (device, dtype) in zip(state_dict["shadow_params"], places, strict=True)
        ]
        self.update_count = state_dict.get("update_count", self.num_updates)

    @contextlib.contextmanager
    def average_parameters(self, parameters: Iterable[torch.Tensor] | None = None) -> Iterator[None]:
        """torch-ema's, but gives back the memory of the stored parameters at the end."""
        collected = self.collected_params
        try:
            with super().average_parameters(parameters):
                yield
        finally:
            self.collected_params = collected

    def _decay_at(self, update: int) -> float:
        return self.decay if self.num_updates is None else min(self.decay, (1 + update) / (10 + update))

    def _check_decay(self, decay: float) -> None:
        if decay != self.decay:
            raise ValueError(
                f"EMA state was made with decay {decay}, this run has {self.decay}: an average cannot change its "
                "decay on the way; use the same decay or start anew"
            )


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
