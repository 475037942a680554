"""The training loop (Alg. 1 of Ho et al. 2020 inside `engine.step`)."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from data_pipeline.loader import Batch
from models.ema import ExponentialMovingAverage
from trainer.engines.base import Engine, StepResult


class Hook(Protocol):
    """Something to do after a step. Called on every worker with the same `step`, so it may use collectives."""

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        """step: number of completed updates."""


def train(
    stream: Iterable[Batch], engine: Engine, ema: ExponentialMovingAverage, hooks: Sequence[Hook], num_steps: int
) -> None:
    """Consume `stream` until `num_steps` updates are complete."""
    for batch in stream:
        result = engine.step(batch)
        ema.update()
        step = batch.step + 1
        for hook in hooks:
            hook(step, batch, result)
        if step >= num_steps:
            break
