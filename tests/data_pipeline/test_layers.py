"""Imports between the parts of data_pipeline run one way, and its order needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from common.code import ROOT

LAYERS = ("storage", "sources", "packing", "demo", "paths", "commands", "__main__")
"""Each may import those before it. storage: what is on disk; sources: what is packed; paths: what a data path names."""
ALLOWED = {part: set(LAYERS[:place]) for place, part in enumerate(LAYERS)}
ALLOWED |= {"permutation": set(), "order": {"permutation"}, "loader": {"order", "storage"}}
ALLOWED["ledger"] = {"loader", "order", "storage"}
ALLOWED["commands"] |= {"order", "loader", "ledger"}


def imported_parts(path: Path) -> set[str]:
    """The parts of data_pipeline that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("data_pipeline.")}
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "data_pipeline").parts[0].removesuffix(".py")


FILES = [path for path in sorted((ROOT / "data_pipeline").rglob("*.py")) if part_of(path) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_part_imports_only_the_parts_below_it(path: Path) -> None:
    assert imported_parts(path) <= ALLOWED[part_of(path)] | {part_of(path)}


def test_the_order_is_imported_without_torch() -> None:
    program = "import sys, data_pipeline.order; assert not {'torch', 'PIL', 'webdataset', 'fsspec'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
