"""What processes need to know of others: when their parent ends, and which commit they run."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(number: signal.Signals, parent_pid: int | None = None) -> None:
    """Have the kernel send `number` to this process when the thread that started it ends. Linux only; else nothing.

    parent_pid: the process that started this one; if it is dead by now, `number` is sent at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if parent_pid is not None and os.getppid() != parent_pid:
            os.kill(os.getpid(), number)


def git_commit() -> str:
    """The commit the code is at; a Ray job's copy has no .git and is told by who submitted it. Else "unknown"."""
    if commit := os.environ.get("RAYDDPM_GIT_COMMIT"):
        return commit
    command = ["git", "-C", str(_ROOT), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"
