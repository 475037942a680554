"""What a process asks of its system: to end with its parent, to keep memory, and who another process is."""

import ctypes
import os
import signal
import sys
from pathlib import Path

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


def is_running(pid: int) -> bool:
    """Whether there is a process of this number, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def start_ticks(pid: int) -> int | None:
    """When the process began, in clock ticks since the machine was started; None if that cannot be read.

    With the number it names a process for good: numbers are used again, and clocks are set.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): field 22. The second, the command's name in brackets, may hold anything.
    return int(text.rpartition(")")[2].split()[19])


def keep_freed_memory() -> None:
    """Have malloc reuse freed memory instead of giving it back to the kernel. With glibc only; else nothing.

    A step on the CPU frees and allocates the same megabytes of activations again and again; given back, each of their
    pages costs a fault and is cleared anew (docs/EXPERIMENTS.md). The process keeps its largest size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # The manual allows no threshold above 32 MiB, glibc 2.36 does. One that is set stops malloc's own adjustments.
    if mallopt is not None and (mallopt(_M_MMAP_THRESHOLD, 2**30) or mallopt(_M_MMAP_THRESHOLD, 2**25)):
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
