"""Ctrl-C and SIGTERM, handled in one place: every command ends with one line and exit code 130."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C or SIGTERM ended."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, with the one line to print: what is kept, and how to go on."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within, SIGTERM raises KeyboardInterrupt as Ctrl-C does. Outside the main thread it changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
