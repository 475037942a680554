"""A process that is stopped, or fails, just before one of its file-system calls: each in turn, with real signals."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CALLS = ("open", "os.", "fcntl.")


class Stalled:
    """A child process that was stopped in the middle of `act`, or has ended before it came that far."""

    def __init__(self, act: Callable[[], bool], number: int):
        """number: of the file-system call, from 1, before which it is stopped."""
        self.pid = os.fork()
        if self.pid == 0:
            _become(act, number)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self.is_stopped = os.WIFSTOPPED(status)
        self._status = status

    def go_on(self) -> bool:
        """What `act` returned."""
        if self.is_stopped:
            os.kill(self.pid, signal.SIGCONT)
            _, self._status = os.waitpid(self.pid, 0)
        self.is_stopped = False
        code = os.waitstatus_to_exitcode(self._status)
        assert code in (0, 1), f"it ended with exit code {code}"
        return code == 0

    def end(self) -> None:
        """Kill it if it is still stopped, because a test failed."""
        if self.is_stopped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def stalled_at_every_call(act: Callable[[], bool], prepare: Callable[[], object]) -> Iterator[Stalled]:
    """A process for each call that `act` makes, stopped before it; `prepare` is called before each, in this process."""
    for number in range(1, 1000):
        prepare()
        stalled = Stalled(act, number)
        if not stalled.is_stopped:
            stalled.go_on()
            assert number > 1, "nothing was called"
            return
        try:
            yield stalled
        finally:
            stalled.end()


def failing_to_open(path: Path, error_number: int, times: int) -> None:
    """From now on the next `times` attempts of this process to open `path` fail. There is no way back."""
    left = times

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open" and str(arguments[0]) == str(path) and left:
            left -= 1
            raise OSError(error_number, os.strerror(error_number))

    sys.addaudithook(hook)


def in_child(act: Callable[[], bool]) -> bool:
    """What `act` returns in a process of its own, which an audit hook then ends with."""
    return Stalled(act, number=0).go_on()


def _become(act: Callable[[], bool], number: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event.startswith(_CALLS) and event != "os.fork":
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(hook)
    code = 2
    try:
        code = 0 if act() else 1
    except BaseException as error:  # noqa: BLE001 (a child must never return into pytest)
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)
