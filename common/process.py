"""What a process arranges with its system: when it ends with its parent, and what memory it keeps."""

import ctypes
import os
import signal
import sys

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
