"""What can stand between a checkpoint and its number."""

from collections.abc import Callable

ReportAlive = Callable[[], None]
"""Called now and then during long work, by parameters named `report_alive`. What it raises ends the work; finished
blocks stay."""

NOT_FINITE = "the network gives values that are not finite"
"""Why there is no number for a checkpoint that has diverged: NaN would become black pixels, and they a distance."""


class BlockedError(RuntimeError):
    """The evaluation cannot run here and now (weights missing or damaged, disk full), and says what to do.

    An evaluator that keeps running tries it again; `eval run` and `serve --once` do when given again.
    Training never notices, and no substitute number is written.
    """


class StopRequestedError(Exception):
    """The evaluator was asked to stop; finished blocks stay for the next one."""
