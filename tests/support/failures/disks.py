"""A disk that is soon full."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.machine import cannot_run


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of `size` (32m) in a mount namespace of its own, reached through the process that holds it."""
    folder.mkdir()
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    script = 'mount -t tmpfs -o size="$2" tmpfs "$1" && echo mounted && exec sleep 600'
    command = ["unshare", *user, "--mount", "sh", "-c", script, "sh", str(folder), size]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "mounted\n":
            cannot_run(f"this machine forbids the mount of a small disk: {holder.stderr.read().strip()}")
        yield Path(f"/proc/{holder.pid}/root{folder}")
        holder.kill()
