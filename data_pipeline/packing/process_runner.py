"""Packing on the processes of this machine; they end with the one that started them, however it ends."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, resource_tracker

from common.process import signals_held_back
from data_pipeline.packing.pack import Task, TaskRunner, run_serially, run_task
from data_pipeline.packing.writer import ShardNotes
from data_pipeline.sources.source import ArraySource

_MIN_ENTRIES_FOR_PROCESSES = 256
_PR_SET_PDEATHSIG = 1


def run_in_processes(num_processes: int) -> TaskRunner:
    """A runner over processes of this machine; a handful of images, or arrays in memory, are not worth sending.

    Raises ChildProcessError if one of the processes was killed.
    """

    def run(tasks: Sequence[Task]) -> Iterator[ShardNotes]:
        num_useful = min(num_processes, len(tasks))
        few = sum(len(task.entries) for task in tasks) < _MIN_ENTRIES_FOR_PROCESSES
        if num_useful < 2 or few or isinstance(tasks[0].source, ArraySource):
            return run_serially(tasks)
        return _run_in_pool(tasks, num_useful)

    return run


def _run_in_pool(tasks: Sequence[Task], num_processes: int) -> Iterator[ShardNotes]:
    others = set(active_children())
    # Not forked: the caller may have threads.
    context = get_context("spawn")
    resource_tracker.ensure_running()  # it would unblock the signals that are held back below
    with ProcessPoolExecutor(num_processes, context, _end_with_parent, (os.getpid(),)) as pool:
        try:
            # Started here. The terminal's Ctrl-C reaches them too, and each would answer with a traceback.
            with signals_held_back():
                futures = [pool.submit(run_task, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
        except BaseException as error:
            # Half a shard is of no use, and to wait for it would hold up who interrupts.
            for process in set(active_children()) - others:
                process.kill()
            if isinstance(error, BrokenProcessPool):
                raise ChildProcessError(
                    "a packing process was killed, perhaps as memory ran out; the same command again goes on from "
                    "here, if need be with a smaller --num-processes"
                ) from error
            raise


def _end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies: an orphan would write into the next pack's work."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
