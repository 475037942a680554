"""What MLflow has not taken while it was away: sent later, by an evaluator that has nothing else to do."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.tracking.uploader import Uploader

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0


@dataclass
class LateUploads:
    """A run whose spool is not empty is tried again, after a pause that grows while MLflow stays away."""

    upload: Callable[[Path], None]
    """Sends a run's spool; what it cannot send stays there."""
    clock: Callable[[], float] = time.monotonic
    _pauses: dict[Path, tuple[float, float]] = field(default_factory=dict)
    """Run -> (time of the next try, pause after that)."""

    def send(self, run: Path) -> None:
        due, pause = self._pauses.get(run, (0.0, _FIRST_PAUSE_SECONDS))
        if self.clock() < due or not Uploader(run).pending():
            return
        self.upload(run)
        if Uploader(run).pending():
            self._pauses[run] = (self.clock() + pause, min(2 * pause, _LONGEST_PAUSE_SECONDS))
        else:
            self._pauses.pop(run, None)
