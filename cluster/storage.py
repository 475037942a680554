"""Atomic storage: a directory exists once its COMPLETE.json does, and is believed once its hashes verify.

Write into `.tmp-*`, fsync every file, write COMPLETE.json (sizes, sha256) last, rename, fsync the parent. A crash
at any point leaves either the complete directory or a leftover that no reader looks at.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.checkpoint_names import COMPLETE as COMPLETE
from common.files import TEMPORARY, fsync, fsync_name, read_json, sha256_of_file, temporary_name, write_json_atomic

_TRASH = ".trash-"
_log = logging.getLogger(__name__)


class DamagedError(ValueError):
    """A committed directory no longer holds what was committed; the message names the file."""


def commit_directory(
    parent: Path,
    name: str,
    write: Callable[[Path], None],
    record: dict[str, Any] | None = None,
    reached: Callable[[str], None] = lambda moment: None,
) -> Path:
    """Create `parent/name` from what `write(directory)` puts there, all or nothing.

    record: extra JSON fields of COMPLETE.json. reached: called with before_rename and after_rename when it gets there.
    Returns the committed directory.
    Raises FileExistsError if the name is taken, OSError (disk full, say) with nothing new left behind.
    """
    destination = parent / name
    if destination.exists():
        raise FileExistsError(f"{destination} exists already; a committed directory is never written again")
    parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(destination)
    temporary.mkdir()
    try:
        write(temporary)
        files = {}
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            fsync(path)
            files[path.relative_to(temporary).as_posix()] = {
                "bytes": path.stat().st_size,
                "sha256": sha256_of_file(path),
            }
        write_json_atomic(temporary / COMPLETE, {**(record or {}), "files": files})
        fsync(temporary)  # here, before it is committed, a failure can still be one
        reached("before_rename")
        os.rename(temporary, destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_name(destination)
    reached("after_rename")
    return destination


def complete_directories(parent: Path) -> list[Path]:
    """The committed directories of `parent`, sorted by name (zero-padded names: oldest first)."""
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if not p.name.startswith(".") and (p / COMPLETE).is_file())


def verify(directory: Path) -> dict[str, Any]:
    """The content of COMPLETE.json, after every file's size and sha256 were found to be as committed.

    Raises DamagedError naming the directory and the first file that differs, OSError if one cannot be read.
    """
    try:
        record = read_json(directory / COMPLETE)
        files = [(name, committed["bytes"], committed["sha256"]) for name, committed in record["files"].items()]
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{directory}: {COMPLETE} is unreadable ({type(error).__name__}: {error})") from error
    if not files:
        raise DamagedError(f"{directory}: {COMPLETE} names no files")
    for name, num_bytes, sha256 in files:
        path = directory / name
        if not path.is_file():
            raise DamagedError(f"{directory}: {name} is missing")
        if path.stat().st_size != num_bytes:
            raise DamagedError(f"{directory}: {name} has {path.stat().st_size} bytes, committed were {num_bytes}")
        if sha256_of_file(path) != sha256:
            raise DamagedError(f"{directory}: {name} does not match its committed sha256")
    return record


def remove_directory(directory: Path) -> None:
    """Delete a committed directory: renamed first, so that no reader meets half of it. Failure only warns."""
    trash = directory.with_name(f"{_TRASH}{directory.name}-{uuid.uuid4().hex[:8]}")
    try:
        os.rename(directory, trash)
        shutil.rmtree(trash)
    except OSError as error:
        _log.warning("could not delete %s: %s", directory, error)


def remove_leftovers(parent: Path) -> list[Path]:
    """Delete what crashes left in `parent` (`.tmp-*`, `.trash-*`). Only for the one process that writes there."""
    if not parent.is_dir():
        return []
    leftovers = [p for p in parent.iterdir() if p.name.startswith((TEMPORARY, _TRASH))]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return leftovers
