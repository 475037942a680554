"""How every command starts and ends: exit codes, one `error:` line, Ctrl-C and SIGTERM, a reader that went away.

It imports next to nothing, so that all this holds before the libraries are imported, which takes seconds.
"""

import importlib
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

from common.interrupt import INTERRUPTED, sigterm_interrupts

USER_ERROR = 2
"""Exit code of what a user can mend."""
_TOO_EARLY = "interrupted before it began"


def start(module: str) -> int:
    """Run `main(arguments)` of a module with the arguments of this process; the exit code. For entry points alone."""
    # Under a home that cannot be written it says on two long lines that it takes a temporary folder instead.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    code = guarded(lambda: importlib.import_module(module).main(sys.argv[1:]), _TOO_EARLY)
    if threading.current_thread() is threading.main_thread():
        # Python takes a while to end, and would answer a signal with a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
    return code


def guarded(body: Callable[[], int], interrupted: str, errors: tuple[type[Exception], ...] = ()) -> int:
    """What `body` returns, or the exit code of how it ended otherwise, after one line on stderr.

    interrupted: the line after Ctrl-C or SIGTERM, where an `Interrupted` brings no other.
    errors: what a user can cause, beside ValueError and OSError.
    """
    mendable: tuple[type[Exception], ...] = (ValueError, OSError, *errors)
    try:
        with sigterm_interrupts():
            code = _exit_code(body)
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        return _end(str(error) or interrupted, INTERRUPTED)
    except mendable as error:
        if isinstance(error, BrokenPipeError) and _reader_went_away():
            return 0
        return _end(f"error: {' '.join(str(error).split())}", USER_ERROR)


def _exit_code(body: Callable[[], int]) -> int:
    """Also of a body that exits, as argparse does after --help."""
    try:
        return body()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            return ended.code
        raise


def _end(line: str, code: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return code


def _reader_went_away() -> bool:
    """Whether nobody reads our output any more, such as after `| head`; then the rest of it goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
