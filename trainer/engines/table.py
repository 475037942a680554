"""The engines by the name that `workers.strategy` gives; a new one is a file of its own and a line here."""

from collections.abc import Callable

from torch import nn

from cluster.launch import Worker
from trainer.config.config import Config
from trainer.engines.base import Engine
from trainer.engines.ddp import DdpEngine
from trainer.engines.exact import ExactEngine
from trainer.engines.zero import ZeroEngine
from trainer.objective import Objective

EngineBuilder = Callable[[nn.Module, Objective, Config, Worker], Engine]

ENGINES: dict[str, EngineBuilder] = {
    "ddp": DdpEngine,
    "zero1": ZeroEngine,
    "zero2": ZeroEngine,
    "zero3": ZeroEngine,
}
"""The choices of `workers.strategy` (trainer/config/sections.py), which must be readable without torch."""


def make_engine(model: nn.Module, objective: Objective, config: Config, worker: Worker) -> Engine:
    """The engine that `workers.strategy` names. model: on any device, the same weights on every worker."""
    if config.workers.compile:
        model.compile()  # in place: its parameters keep their names
    if config.train.reduction == "exact":
        return ExactEngine(model, objective, config, worker)
    return ENGINES[config.workers.strategy](model, objective, config, worker)
