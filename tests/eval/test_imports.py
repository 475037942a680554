"""The folders of eval/ import one way, lazily too (that no file is in a circle: tests/test_policies.py)."""

import ast
from pathlib import Path

import pytest

from common.code import ROOT
from tests.test_policies import imports_of

FOLDERS = ("metrics", "sampling", "reports", "service", "web")
"""A folder imports only from itself, from those before it, and from the files of eval/ itself."""


def modules() -> dict[str, Path]:
    paths = sorted((ROOT / "eval").rglob("*.py"))
    return {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in paths}


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_one_way(folder):
    later = tuple(f"eval.{name}" for name in FOLDERS[FOLDERS.index(folder) + 1 :])
    paths = sorted((ROOT / "eval" / folder).glob("*.py"))
    assert len(paths) > 1
    backwards = {path.name: [name for name in imports_of(path) if name.startswith(later)] for path in paths if later}
    assert not {name: found for name, found in backwards.items() if found}


def test_the_command_line_reads_the_tables_without_torch():
    """`python -m eval --help` and a misspelled protocol answer at once."""
    known = modules()
    seen, waiting = set(), ["eval.protocol"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        body = ast.parse(known[name].read_text(encoding="utf-8")).body
        names = {node.module for node in body if isinstance(node, ast.ImportFrom) and node.module}
        names |= {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        assert not {found.partition(".")[0] for found in names} & {"torch", "numpy", "ray", "mlflow"}, name
        waiting += names & known.keys()
    assert "eval.metrics.metric" in seen
