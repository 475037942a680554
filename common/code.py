"""The code that runs: where it lies, which commit it is at, which versions of packages it uses."""

import contextlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds our packages: a checkout, a Ray job's copy of them, or site-packages."""
CONSTRAINTS = ROOT / "constraints.txt"
"""The versions that the code is tested with; it is not there where the code was installed as a wheel."""
PACKAGES = ("common", "models", "data_pipeline", "cluster", "eval", "trainer", "rayddpm")


def command(*arguments: str) -> list[str]:
    """What starts `rayddpm ARGUMENTS` as a process of its own, in any folder.

    `python -m eval` would take the eval/ of the folder it is started in, if there is one.
    """
    return [sys.executable, str(ROOT / "trainer" / "rayddpm.py"), *arguments]


def ours_first() -> contextlib.AbstractContextManager[None]:
    """To call ray.init in: Ray puts the current folder first on its workers' sys.path, whatever it holds."""
    return contextlib.chdir(ROOT)


@contextlib.contextmanager
def copied_packages() -> Iterator[Path]:
    """A temporary folder with a copy of our packages and, of what lies beside them, of constraints.txt alone."""
    with tempfile.TemporaryDirectory(prefix="rayddpm-code-") as folder:
        for package in PACKAGES:
            shutil.copytree(ROOT / package, Path(folder) / package, ignore=shutil.ignore_patterns("__pycache__"))
        if CONSTRAINTS.is_file():
            shutil.copy(CONSTRAINTS, folder)
        yield Path(folder)


def installed_versions(*packages: str) -> dict[str, str]:
    """The versions of those that are installed, by name."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str:
    """The commit the code is at, else "unknown". A Ray job's copy has no .git: who submitted it passes it on."""
    if commit := os.environ.get("RAYDDPM_GIT_COMMIT"):
        return commit
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return found.stdout.strip() if found.returncode == 0 else "unknown"
