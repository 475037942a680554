"""What a process arranges with its system: what ends with it, which signals its children get, what memory it keeps."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def process_identity(pid: int) -> str | None:
    """What no other process has, before or after, with this pid or another; None if there is no such process.

    On Linux from the ticks since the machine was started, which stay when its clock is set; the time of a process's
    creation does not.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        start_ticks = stat.rpartition(")")[2].split()[19]  # the 22nd field; the 2nd, a name, may hold spaces
        return f"{boot_id}/{pid}/{start_ticks}"
    import psutil

    try:
        return f"{pid}/{psutil.Process(pid).create_time()}"
    except psutil.NoSuchProcess:
        return None


def end_descendants(patience_seconds: float = 1.0) -> None:
    """Kill all processes below this one, and wait for their ends, but no longer than that."""
    import psutil

    this, deadline = psutil.Process(), patience_seconds
    while (living := [p for p in this.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]) and deadline > 0:
        for process in living:  # parents come before their children, so that a killed one is not replaced
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(living, timeout=0.2)
        deadline -= 0.2


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Within, SIGINT and SIGTERM wait, and processes that are started are born with both blocked, for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def sessions_of_their_own() -> Iterator[None]:
    """Within, each process that is started by `subprocess` gets a session, which the terminal's Ctrl-C does not reach.

    For libraries that start processes and have no option for it, such as ray.init.
    """
    start = subprocess.Popen.__init__

    def start_in_session(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **{**options, "start_new_session": True})

    subprocess.Popen.__init__ = start_in_session  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]
