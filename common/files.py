"""Files that appear whole or not at all, and what proves that one is still what it was."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_log = logging.getLogger(__name__)
TEMPORARY = ".tmp-"
"""How names of unfinished files and folders start."""
TEMPORARY_NAMES = f"{TEMPORARY}{'[0-9a-f]' * 32}-*"
"""The pattern of `temporary_name`, for those who clean up after killed processes."""


def temporary_name(path: Path) -> Path:
    """A name beside `path` that no other process writes to, not even an orphan of a killed one."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{path.name}")


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Replace `path` by what `write(temporary path)` puts there: a reader sees the old content or the new, whole.

    The content survives a power cut. Raises what `write` raises, or OSError, with the old content in place.
    """
    temporary = temporary_name(path)
    try:
        write(temporary)
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_name(path)


def fsync_name(path: Path) -> None:
    """Have the system write to the disk now that `path` is there under this name. Where it cannot, a warning.

    The file is there all the same: whoever took that for a failure would write it again.
    """
    try:
        fsync(path.parent)
    except OSError as error:
        _log.warning("%s is written, but may not survive a power cut: %s", path, error)


def write_bytes_atomic(path: Path, content: bytes) -> None:
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def write_text_atomic(path: Path, text: str) -> None:
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: Path, value: Any) -> None:
    write_text_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, or ValueError that names the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise ValueError(f"{path} is not JSON: {error}") from error


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """The SHA-256 of an open file from where it stands to its end, in hex."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def fsync(path: Path) -> None:
    """Have the system write a file's content, or a folder's list of names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
