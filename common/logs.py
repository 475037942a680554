"""Log lines: for people, or, where RAYDDPM_LOG is json, one JSON object a line for whoever collects them."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

VARIABLE = "RAYDDPM_LOG"


class JsonLines(logging.Formatter):
    """time, level, logger, what is known of the process (`about`), message, and the exception if there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.about: dict[str, Any] = {}

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **self.about,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return json.dumps(said)


def as_json() -> bool:
    """Raises ValueError if RAYDDPM_LOG is something else than json or text."""
    kind = os.environ.get(VARIABLE) or "text"
    if kind not in ("json", "text"):
        raise ValueError(f"{VARIABLE} is {kind!r}: it must be json or text")
    return kind == "json"


def start_logging(stream: TextIO, text_format: str, date_format: str | None = None) -> None:
    """Records of INFO and above go to `stream`, as text_format says, or as JSON with warnings and what nobody caught.

    Raises ValueError if RAYDDPM_LOG is something else than json or text.
    """
    if not as_json():
        logging.basicConfig(level=logging.INFO, format=text_format, datefmt=date_format, stream=stream)
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: logging.critical("uncaught", exc_info=(kind, error, trace))


def tell(**about: Any) -> None:
    """Of which run, rank and step this process speaks from now on; for JSON alone."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonLines):
            handler.formatter.about |= about


def say(line: str, level: int = logging.ERROR) -> None:
    """The one line that ends a command, or that a signal is answered with, on stderr."""
    print(as_line(line, level), file=sys.stderr, flush=True)


def as_line(line: str, level: int = logging.ERROR) -> str:
    """The line, or what it is as a record where this process logs as JSON."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    for formatter in formatters:
        if isinstance(formatter, JsonLines):
            return formatter.format(logging.LogRecord("rayddpm", level, "", 0, line, (), None))
    return line
