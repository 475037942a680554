"""The house rules that a machine can check (docs/ARCHITECTURE.md)."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from common.code import ROOT
from docs.make_file_tables import file_tables

ALLOWED = {
    "common": set(),
    "models": {"common"},
    "data_pipeline": {"common"},
    "cluster": {"common"},
    "eval": {"common", "models", "data_pipeline", "cluster"},
    "trainer": {"common", "models", "data_pipeline", "cluster", "eval"},
    # The public interface in Python (docs/decisions/0004-python-interface.md); nothing of ours imports it.
    "rayddpm": {"common", "models"},
}
ENTRY_POINTS = {
    "models/__main__.py",
    "data_pipeline/__main__.py",
    "cluster/__main__.py",
    "eval/__main__.py",
    "trainer/main.py",
    "trainer/rayddpm.py",
}
# Folders that may hold more than MAX_FILES files of code, and why.
WIDE = {"cluster": "a flat package of small parts, none of which is made of others"}
MAX_FILES, MAX_LINES, MAX_TEST_LINES, MAX_FUNCTION_LINES = 15, 250, 350, 40
# What is written once, by the only files that may contain it.
ONCE = {
    r"def read_json\b": {"common/files.py"},
    r"def (_?write_(json|text|bytes)_atomic)\b": {"common/files.py"},
    r"def _?(sha256|digest)_of(_file)?\b|hashlib\.file_digest\(": {"common/files.py"},
    r"def _?redacted\b": {"common/redaction.py"},
    r"def _?(make_)?grid\b": {"common/pictures.py"},
    r"from rich\.(progress|live) import": {"common/progress.py"},
    r"\bArgumentParser\(": {"common/command_line.py", "common/parser.py", "trainer/completion.py"},
}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that `path` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    forbidden = ALLOWED.keys() - ALLOWED[package] - {package}
    offenders = {str(p.relative_to(ROOT)): imported(p) & forbidden for p in sources(package) if imported(p) & forbidden}
    assert sources(package)
    assert not offenders


def test_every_package_has_one_command_line() -> None:
    with_main = {
        p.relative_to(ROOT).as_posix()
        for package in ALLOWED
        for p in sources(package)
        if re.search(r'__name__ == "__main__"', p.read_text())
    }
    assert with_main == ENTRY_POINTS


def test_no_file_of_the_trainer_hides_a_module() -> None:
    """`python trainer/main.py` starts with trainer/ on sys.path."""
    names = {p.stem for p in sources("trainer")} - {"__init__"}
    installed = {line.split("==")[0].lower().replace("-", "_") for line in constraints()}
    assert not names & set(sys.stdlib_module_names)
    assert not names & installed


def test_the_loop_fits_on_a_screen_and_names_no_vendor() -> None:
    path = ROOT / "trainer" / "loop.py"
    assert len(path.read_text().splitlines()) <= 50
    assert not imported(path) & {"ray", "mlflow", "deepspeed", "webdataset", "cleanfid", "torch_ema"}


def test_versions_are_pinned_without_places() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+!]+", line) for line in constraints())


def test_commands_in_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z][a-z-]*)", readme)) <= targets
    modules = set(re.findall(r"python -m (\w+)", readme)) - {"venv", "pip"}
    assert modules <= ALLOWED.keys()


def test_the_architecture_page_says_what_each_file_says_of_itself() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    assert page.partition("\n## Files\n")[2] == file_tables(), "run: python docs/make_file_tables.py"


def imports_of(path: Path) -> set[str]:
    """Our own modules that `path` imports, inside functions too: a late import is a circle still. Those that are for
    type checkers only are none."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        else:
            nodes += ast.iter_child_nodes(node)
    return found


def test_no_circle_of_imports() -> None:
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
        for package in ALLOWED
        for path in sources(package)
    }
    graph = {name: imports_of(path) & modules.keys() for name, path in modules.items()}
    assert graph["trainer.loop"]
    assert "eval.metrics.inception" in graph["eval.metrics.extractor"]  # inside a function: it is seen
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


def all_code() -> list[Path]:
    return [path for package in ALLOWED for path in sources(package)]


def names(paths: Iterable[Path]) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in paths}


def num_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_no_folder_holds_more_files_than_a_reader_takes_in() -> None:
    beside = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    files = [path for path in (*all_code(), *beside) if path.name != "__init__.py"]
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    assert {folder for folder, number in counts.items() if number > MAX_FILES} <= WIDE.keys()


def test_no_file_is_longer_than_a_few_screens() -> None:
    tests = [*sources("tests"), *sources("benchmarks")]
    assert names(path for path in all_code() if num_lines(path) > MAX_LINES) == set()
    assert names(path for path in tests if num_lines(path) > MAX_TEST_LINES) == set()


def test_every_function_fits_on_a_screen() -> None:
    """Without its docstring."""
    long = set()
    for path in all_code():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                described = ast.get_docstring(node) is not None
                docstring = (first.end_lineno or 0) - first.lineno + 1 if described else 0
                if (node.end_lineno or 0) - node.lineno + 1 - docstring > MAX_FUNCTION_LINES:
                    long.add(f"{path.relative_to(ROOT)}:{node.name}")
    assert long == set()


@pytest.mark.parametrize("pattern", ONCE)
def test_what_several_packages_need_is_written_once(pattern: str) -> None:
    assert names(path for path in all_code() if re.search(pattern, path.read_text())) <= ONCE[pattern]


def test_tests_lie_where_what_they_test_lies() -> None:
    """Each folder of tests is one of the code, but for what several share, and whole runs."""
    folders = {path.parent.relative_to(ROOT / "tests") for path in sources("tests")}
    ours = {folder for folder in folders if folder.parts[:1] not in ((), ("runs",), ("support",))}
    assert {folder.as_posix() for folder in ours if not (ROOT / folder).is_dir()} == set()


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
