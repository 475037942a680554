"""How far MLflow has each file of a spool, kept beside it: bytes that it took and need not be sent again."""

from dataclasses import dataclass, field
from pathlib import Path

from common.files import read_json, write_json_atomic


@dataclass
class Acknowledged:
    """Of one run's spool, which has a file for every evaluation: what was read is remembered until it changes."""

    _seen: dict[Path, tuple[tuple[int, int, int], int]] = field(default_factory=dict)
    """Spool file -> (version of what lies beside it, bytes)."""

    def num_bytes(self, spool_file: Path) -> int:
        """How many of its first bytes MLflow has."""
        path = _beside(spool_file)
        try:
            status = path.stat()
        except FileNotFoundError:
            return 0
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        seen = self._seen.get(spool_file)
        if seen is None or seen[0] != version:
            seen = self._seen[spool_file] = version, read_json(path)["bytes"]
        return seen[1]

    def write(self, spool_file: Path, num_bytes: int) -> None:
        write_json_atomic(_beside(spool_file), {"bytes": num_bytes})

    def forget(self, spool_file: Path) -> None:
        """MLflow has nothing of it."""
        _beside(spool_file).unlink(missing_ok=True)


def _beside(spool_file: Path) -> Path:
    return spool_file.with_suffix(".acknowledged.json")
