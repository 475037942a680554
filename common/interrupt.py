"""Ctrl-C and SIGTERM, handled in one place: every command ends with one line and exit code 130.

The first signal is handled on the main thread, where Python runs handlers. A second one is seen by a thread of its own,
because the main thread may be in a call that does not return: it ends the process and all below it at once.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from common.process import end_descendants

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or SIGTERM ended."""
SAME_REQUEST_SECONDS = 1.0
"""Signals within this time are one request: timeout(1) and some schedulers send a signal to a process and then again
to all of its group."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with the one line to print: what is kept, and how to go on."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within, SIGINT and SIGTERM raise KeyboardInterrupt; a second one ends the process at once with exit code 130.

    When KeyboardInterrupt leaves the block, the processes below this one are killed. Outside the main thread it changes
    nothing.
    """

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt

    with handling_signals(interrupt, lambda: "ended at once; what was finished before is kept"):
        try:
            yield
        except KeyboardInterrupt:
            end_descendants()  # within: the same signal again would kill this process before it has done that
            raise


@contextmanager
def handling_signals(first: Callable[[int], None], at_once: Callable[[], str]) -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM calls `first` on the main thread, a later one ends the process at once.

    at_once: called in another thread before that end, for what a second is enough for; returns the line to print.
    Blocks nest: the innermost one has the signals. Outside the main thread it changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch(at_once)

    def handle(number: int, frame: FrameType | None) -> None:
        if watch.is_first():
            first(number)

    handlers = {number: signal.signal(number, handle) for number in _SIGNALS}
    wakeup_fd, hook = signal.set_wakeup_fd(watch.start(), warn_on_full_buffer=False), sys.unraisablehook
    sys.unraisablehook = lambda args: watch.deliver_again() if args.exc_type is KeyboardInterrupt else hook(args)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup_fd)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        watch.close()


class _Watch:
    """Counts requests: signals that come closer together than SAME_REQUEST_SECONDS are one."""

    def __init__(self, at_once: Callable[[], str]):
        self._at_once = at_once
        self._handled, self._first_seconds = False, 0.0
        self._reading, self._writing = socket.socketpair()

    def start(self) -> int:
        """The file descriptor to which the interpreter writes a byte, the signal's number, for each signal."""
        self._writing.setblocking(False)
        threading.Thread(target=self._loop, name="signals", daemon=True).start()
        return self._writing.fileno()

    def close(self) -> None:
        self._writing.close()

    def is_first(self) -> bool:
        handled, self._handled = self._handled, True
        return not handled

    def deliver_again(self) -> None:
        """An exception raised while a destructor runs is lost: the first signal is sent once more, a moment later."""
        self._handled = False
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    def _loop(self) -> None:
        with self._reading:
            while byte := self._reading.recv(1):
                if byte[0] not in _SIGNALS:
                    continue
                now = time.monotonic()
                self._first_seconds = self._first_seconds or now
                if now - self._first_seconds > SAME_REQUEST_SECONDS:
                    end_at_once(self._at_once())


def end_at_once(line: str) -> NoReturn:
    """Kill the processes below this one, print the line, and end without waiting for anything; exit code 130."""
    end_descendants()
    with contextlib.suppress(OSError):  # the terminal is gone
        if os.isatty(2):
            line = f"\r\x1b[2K{_SHOW_CURSOR}{line}"
        os.write(2, f"{line}\n".encode())
    os._exit(INTERRUPTED)
