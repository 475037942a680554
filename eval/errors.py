"""What can stand between a checkpoint and its number."""


class BlockedError(RuntimeError):
    """The evaluation cannot run here and now (weights missing or damaged), and says what to do.

    It is tried again later. Training never notices, and no substitute number is written.
    """
