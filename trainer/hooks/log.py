"""Which step the log speaks of, where its lines are JSON."""

from common.logs import tell
from data_pipeline.loader import Batch
from trainer.engines.base import StepResult


class LogHook:
    """Records from now on carry the step that is done; those of other threads too."""

    def __init__(self, start_step: int):
        """start_step: the number of updates that the checkpoint has."""
        tell(step=start_step)

    def __call__(self, step: int, batch: Batch, result: StepResult) -> None:
        tell(step=step)
