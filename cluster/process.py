"""What a process arranges with its system: when its parent ends, what memory it keeps, and what code it runs."""

import ctypes
import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def end_with_parent(number: signal.Signals, parent_pid: int | None = None) -> None:
    """Have the kernel send `number` to this process when the thread that started it ends. Linux only; else nothing.

    parent_pid: the process that started this one; if it is dead by now, `number` is sent at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if parent_pid is not None and os.getppid() != parent_pid:
            os.kill(os.getpid(), number)


def keep_freed_memory() -> None:
    """Have malloc reuse freed memory instead of giving it back to the kernel. With glibc only; else nothing.

    A step on the CPU frees and allocates the same megabytes of activations again and again; given back, each of their
    pages costs a fault and is cleared anew (docs/EXPERIMENTS.md). The process keeps its largest size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The manual allows no threshold above 32 MiB, glibc 2.36 does. One that is set stops malloc's own adjustments.
    if mallopt is not None and (mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def installed_versions(*packages: str) -> dict[str, str]:
    """The versions of those that are installed, by name."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


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
