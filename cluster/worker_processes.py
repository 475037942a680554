"""Worker processes on this machine: started, watched to their end, and what failed first when one fails."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from common.logs import start_logging
from common.process import end_with_parent, signals_held_back
from common.progress import log_format

START_METHOD: Literal["spawn", "fork"] = "spawn"
"""A fork of a process that has threads, or a GPU, may hang."""
SIGNAL_SECONDS = 0.5
"""How often a launching process wakes up: Python runs a signal's handler on the main thread, which sleeps on where the
kernel has handed the signal to another, as it does when SIGCONT comes just before (Slurm sends both)."""
_GRACE_SECONDS = 2.0
_MAX_DETAILS = 10_000
"""Characters; with the rest of the message they fit into a pipe's buffer, so that a failing worker waits for nobody."""


class WorkerError(RuntimeError):
    """What ended one worker: a reason in one line, the traceback as details, and when (seconds of the Unix clock).

    When one worker fails, the others lose their connections to it and fail too: the first failure is the cause.
    """

    def __init__(self, rank: int, unix_seconds: float, reason: str, details: str = ""):
        super().__init__(rank, unix_seconds, reason, details)
        self.rank, self.unix_seconds, self.reason, self.details = rank, unix_seconds, reason, details

    def __str__(self) -> str:
        return f"worker {self.rank} {self.reason}"


@contextmanager
def noting_failure(rank: int) -> Iterator[None]:
    """Raises WorkerError for whatever exception leaves the block, with the moment at which it did."""
    try:
        yield
    except WorkerError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        details = traceback.format_exc()[-_MAX_DETAILS:]
        raise WorkerError(rank, time.time(), f"failed with {reason[:2000]}", details) from error


def run_processes(target: Callable[..., None], num_workers: int, *arguments: Any) -> None:
    """Run target(rank, *arguments) in one new process per rank, to their end. None is left when this returns or raises.

    When one fails, the others have two seconds to end by themselves and are then killed; they are not sent SIGTERM,
    which workers take for a request to end the run. Raises the WorkerError of the worker that failed first.
    """
    context: Any = multiprocessing.get_context(START_METHOD)
    resource_tracker.ensure_running()  # it would unblock the signals that are held back below
    processes: list[BaseProcess] = []
    reports: list[Connection] = []
    try:
        for rank in range(num_workers):
            report, sender = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(rank, target, arguments, sender), name=f"worker-{rank}")
            with signals_held_back():  # Ctrl-C reaches the whole group, also a process that cannot handle it yet
                process.start()
                processes.append(process)
            reports.append(report)
            sender.close()
        ended = _wait(processes)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
    failures = [_failure(rank, processes[rank], reports[rank], when) for rank, when in ended.items()]
    if found := [failure for failure in failures if failure is not None]:
        raise min(found, key=lambda failure: failure.unix_seconds)


def _wait(processes: Sequence[BaseProcess]) -> dict[int, float]:
    """Wait until all have ended, or two seconds longer than the first that failed: when which ended (Unix seconds)."""
    ended: dict[int, float] = {}
    deadline = float("inf")
    while len(ended) < len(processes) and time.monotonic() < deadline:
        living = [process.sentinel for rank, process in enumerate(processes) if rank not in ended]
        connection.wait(living, SIGNAL_SECONDS)
        for rank, process in enumerate(processes):
            if rank not in ended and not process.is_alive():
                ended[rank] = time.time()
                if process.exitcode:
                    deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return ended


def _failure(rank: int, process: BaseProcess, report: Connection, unix_seconds: float) -> WorkerError | None:
    """What the worker says of its end, else what its exit code does; None if it ended well."""
    try:
        return report.recv()
    except EOFError:
        code = process.exitcode or 0
    if not code:
        return None
    return WorkerError(rank, unix_seconds, f"died of signal {-code}" if code < 0 else f"ended with exit code {code}")


def _run(rank: int, target: Callable[..., None], arguments: tuple[Any, ...], report: Connection) -> None:
    """A worker's process. SIGTERM stays blocked, as it was when it was born, until the worker has a handler for it."""
    start_logging(sys.stderr, log_format(sys.stderr))
    # The launching process turns Ctrl-C into a stop after a checkpoint; when it dies, its workers must too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked one has its parent's, and wakes it up
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    parent = multiprocessing.parent_process()
    end_with_parent(signal.SIGKILL, parent.pid if parent else None)
    try:
        with noting_failure(rank):
            target(rank, *arguments)
    except WorkerError as error:
        report.send(error)
        report.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
