"""What can stand between a checkpoint and its number."""

NOT_FINITE = "the network gives values that are not finite"
"""Why there is no number for a checkpoint that has diverged: NaN would become black pixels, and they a distance."""


class BlockedError(RuntimeError):
    """The evaluation cannot run here and now (weights missing or damaged), and says what to do.

    It is tried again later. Training never notices, and no substitute number is written.
    """
