"""Progress of whatever takes longer than a moment: a bar on a terminal, a line every so often elsewhere."""

import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from common.logs import as_json

if TYPE_CHECKING:
    from rich.text import Text

_log = logging.getLogger(__name__)
_MIN_BAR_COLUMNS, _MAX_BAR_COLUMNS = 10, 40
_REDRAW_SECONDS = 0.25
LINE_START = "\r\x1b[2K"
"""What a line for a terminal begins with: it clears the line, where a bar may stand."""


class Progress:
    """How far something is; what a bar or a line says. Any thread may set it."""

    def __init__(self, title: str, total: int | None = None):
        self.title, self.total, self.done = title, total, 0
        self.notes: Sequence[str] = ()
        """What else to say, the most important first: a narrow terminal shows fewer."""
        self.seconds_left: float | None = None
        """None: not known, or taken from what is done so far if `estimates`."""
        self.estimates = True
        self._started = time.monotonic()

    def report(self, done: int, total: int | None = None, *notes: str) -> None:
        """done and total: in the same unit. total: None if it is not known, or as before."""
        self.done, self.total, self.notes = done, total or self.total, notes

    def advance(self) -> None:
        self.done += 1

    def line(self) -> str:
        """All of it in one line, without a bar."""
        return "  ".join(self._texts())

    def draw(self, num_columns: int, ascii_only: bool = False) -> "Text":
        """A bar with its numbers, at most that wide: at least ten columns of bar, then as many notes as fit."""
        from rich.text import Text

        texts, bar = self._texts(), bool(self.total)
        room = num_columns - 1  # a full line would wrap on some terminals
        while len(texts) > 1 and _width(texts, bar) > room:
            texts.pop()
        if not bar or _width(texts, bar) > room:
            return Text("  ".join(texts)[:room])
        columns = min(_MAX_BAR_COLUMNS, room - _width(texts, bar) + _MIN_BAR_COLUMNS)
        filled = round(columns * min(1.0, self.done / (self.total or 1)))
        full, empty = "=-" if ascii_only else "━─"
        return Text.assemble(
            (full * filled, "bar.complete"), (empty * (columns - filled), "bar.back"), "  ", "  ".join(texts)
        )

    def _texts(self) -> list[str]:
        counted = f"{self.title} {self.done}" if self.done or self.total else self.title
        elapsed, left = time.monotonic() - self._started, self.seconds_left
        if left is None and self.estimates and self.total and 0 < self.done <= self.total:
            left = elapsed * (self.total - self.done) / self.done
        return [
            f"{counted}/{self.total}" if self.total else counted,
            f"{clock(elapsed)} so far" if left is None else f"{clock(left)} left",
            *self.notes,
        ]


@contextmanager
def progress(
    title: str, total: int | None = None, stream: TextIO | None = None, line_seconds: float = 10.0
) -> Iterator[Progress]:
    """Show progress on `stream` (stderr if not given) until the block ends: `with progress("packing") as shown: ...`.

    On a terminal a bar that is redrawn; elsewhere a line every `line_seconds`, and none of what takes less.
    """
    shown = Progress(title, total)
    with showing(shown, stream, line_seconds):
        yield shown


@contextmanager
def showing(shown: Progress, stream: TextIO | None = None, line_seconds: float = 10.0) -> Iterator[None]:
    """As `progress`, of what is given."""
    stream = stream or sys.stderr
    ended = threading.Event()
    show = _draw if stream.isatty() and not as_json() else _print_lines
    thread = threading.Thread(target=show, args=(shown, stream, line_seconds, ended), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def log_format(stream: TextIO) -> str:
    """The format of our log lines: on a terminal each begins by clearing the line, where a bar may stand."""
    return f"{LINE_START if stream.isatty() else ''}%(levelname)s %(name)s: %(message)s"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03; 2:03 without hours."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def _width(texts: Sequence[str], bar: bool) -> int:
    return sum(map(len, texts)) + 2 * (len(texts) - 1) + (_MIN_BAR_COLUMNS + 2 if bar else 0)


def _draw(shown: Progress, stream: TextIO, line_seconds: float, ended: threading.Event) -> None:
    """Redraws one line. What others write to the terminal begins with clearing it, or stands behind a copy of it."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream)
    ascii_only = not (stream.encoding or "").lower().startswith("utf")
    with Live(console=console, auto_refresh=False, transient=False) as live:
        over = False
        while not over:
            over = ended.wait(_REDRAW_SECONDS)
            live.update(shown.draw(console.width, ascii_only), refresh=True)


def _print_lines(shown: Progress, stream: TextIO, line_seconds: float, ended: threading.Event) -> None:
    said: tuple[object, ...] = ()
    over = False
    while not over:
        over = ended.wait(line_seconds)
        now = (shown.done, *shown.notes)
        if now != said and (not over or said):
            if as_json():
                _log.info("%s", shown.line())
            else:
                print(shown.line(), file=stream, flush=True)
            said = now
