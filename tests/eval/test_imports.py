"""The files of eval/ import each other one way, lazily too; so do its folders."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from common.code import ROOT

FOLDERS = ("metrics", "sampling", "reports", "service", "web")
"""A folder imports only from itself, from those before it, and from the files of eval/ itself."""


def modules() -> dict[str, Path]:
    paths = sorted((ROOT / "eval").rglob("*.py"))
    return {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in paths}


def imports(path: Path) -> set[str]:
    """Everything that a file imports at any time, inside functions too; what only type checkers see is left out."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        else:
            nodes += ast.iter_child_nodes(node)
    return found


def test_no_circle_of_files_lazy_imports_counted_too():
    known = modules()
    graph = {name: imports(path) & known.keys() for name, path in known.items()}
    assert "eval.metrics.inception" in graph["eval.metrics.extractor"]  # inside a function: it is seen
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_one_way(folder):
    later = tuple(f"eval.{name}" for name in FOLDERS[FOLDERS.index(folder) + 1 :])
    paths = sorted((ROOT / "eval" / folder).glob("*.py"))
    assert len(paths) > 1
    backwards = {path.name: [name for name in imports(path) if name.startswith(later)] for path in paths if later}
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
