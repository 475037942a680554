"""The fault points of a step, for runs that are given faults; others have none of this."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from torch import Tensor, nn

from cluster.fault import Faults
from data_pipeline.loader import Batch
from trainer.engines.base import StepResult
from trainer.objective import Objective


@dataclass(frozen=True, kw_only=True)
class DrilledObjective(Objective):
    """An objective whose losses on this worker can become NaN."""

    faults: Faults
    global_batch_size: int

    def losses(self, model: nn.Module, images: Tensor, counters: Tensor) -> Tensor:
        losses = super().losses(model, images, counters)
        step = int(counters[0]) // self.global_batch_size + 1
        return losses * float("nan") if self.faults("step.loss", step) else losses


def drilled(objective: Objective, faults: Faults, global_batch_size: int) -> Objective:
    """The same objective, with its fault point."""
    values = {field.name: getattr(objective, field.name) for field in fields(objective)}
    return DrilledObjective(**values, faults=faults, global_batch_size=global_batch_size)


def drilled_stream(stream: Iterable[Batch], faults: Faults) -> Iterator[Batch]:
    """The same batches, each with its fault point."""
    for batch in stream:
        faults("step.before", batch.step + 1)
        yield batch


class DrillHook:
    """The fault point after an update; the first of the hooks."""

    def __init__(self, faults: Faults):
        self._faults = faults

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        self._faults("step.after", step)
