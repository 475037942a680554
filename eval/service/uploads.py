"""What an evaluator sends to MLflow: after each evaluation, and later what MLflow did not take while it was away."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.tracking.acknowledged import Acknowledged
from cluster.tracking.uploader import Uploader

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0
_log = logging.getLogger(__name__)


@dataclass
class Uploads:
    """Sends a run's spool to MLflow; an MLflow that is away costs a warning, the points stay in the spool."""

    _acknowledged: dict[Path, Acknowledged] = field(default_factory=lambda: defaultdict(Acknowledged))

    def __call__(self, run_directory: Path) -> None:
        try:
            Uploader(run_directory, acknowledged=self._acknowledged[run_directory]).drain()
        except Exception as error:  # noqa: BLE001 (MLflow, its HTTP and its SQL layers raise unrelated types)
            _log.warning("MLflow is away, the result is kept and sent later: %s", str(error).partition("\n")[0])


@dataclass
class LateUploads:
    """A run whose spool is not empty is tried again, after a pause that grows while MLflow stays away."""

    upload: Callable[[Path], None]
    """Sends a run's spool; what it cannot send stays there."""
    clock: Callable[[], float] = time.monotonic
    _pauses: dict[Path, tuple[float, float]] = field(default_factory=dict)
    """Run -> (time of the next try, pause after that)."""
    _acknowledged: dict[Path, Acknowledged] = field(default_factory=lambda: defaultdict(Acknowledged))

    def send(self, run: Path) -> None:
        due, pause = self._pauses.get(run, (0.0, _FIRST_PAUSE_SECONDS))
        if self.clock() < due or not self._is_pending(run):
            return
        self.upload(run)
        if self._is_pending(run):
            self._pauses[run] = (self.clock() + pause, min(2 * pause, _LONGEST_PAUSE_SECONDS))
        else:
            self._pauses.pop(run, None)

    def _is_pending(self, run: Path) -> bool:
        return Uploader(run, acknowledged=self._acknowledged[run]).pending()
