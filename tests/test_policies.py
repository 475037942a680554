"""The house rules that a machine can check (docs/ARCHITECTURE.md)."""

import ast
import re
import sys
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
}
DOORS = {
    "models/__main__.py",
    "data_pipeline/__main__.py",
    "cluster/__main__.py",
    "eval/__main__.py",
    "trainer/main.py",
    "trainer/rayddpm.py",
}
"""`python -m PACKAGE` each, and the one command over them all."""
HEAVY = {
    "mlflow": {"cluster/tracking.py", "eval/registry.py", "models/cli/registry_uri.py"},
    "deepspeed": {"trainer/engines/zero.py"},
    "webdataset": {"data_pipeline/packing/writer.py"},
    "cleanfid": {"eval/metrics/inception.py"},
    "torch_ema": {"models/ema.py"},
}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that `path` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_run_one_way(room: str) -> None:
    forbidden = ALLOWED.keys() - ALLOWED[room] - {room}
    offenders = {str(p.relative_to(ROOT)): imported(p) & forbidden for p in sources(room) if imported(p) & forbidden}
    assert sources(room)
    assert not offenders


def test_every_room_has_one_door() -> None:
    with_main = {
        p.relative_to(ROOT).as_posix()
        for room in ALLOWED
        for p in sources(room)
        if re.search(r'__name__ == "__main__"', p.read_text())
    }
    assert with_main == DOORS


def test_ray_is_imported_only_where_things_are_launched_or_served() -> None:
    importers = {p.relative_to(ROOT).as_posix() for room in ALLOWED for p in sources(room) if "ray" in imported(p)}
    assert importers
    allowed = ("cluster/", "eval/sampling/ray_pool.py", "eval/web/serve.py", "data_pipeline/packing/ray_runner.py")
    assert all(name.startswith(allowed) for name in importers), importers


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_stay_in_few_files(library: str) -> None:
    importers = {p.relative_to(ROOT).as_posix() for room in ALLOWED for p in sources(room) if library in imported(p)}
    assert importers <= HEAVY[library]


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
    """Our own modules that `path` imports when it is imported: not those inside functions or for type checkers only."""
    found = set()
    nodes = list(ast.parse(path.read_text()).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.If):
            nodes += node.orelse if ast.unparse(node.test) == "TYPE_CHECKING" else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try | ast.With):
            nodes += node.body
    return found


def test_no_circle_of_imports() -> None:
    modules = {
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path
        for room in ALLOWED
        for path in sources(room)
    }
    graph = {name: imports_of(path) & modules.keys() for name, path in modules.items()}
    assert graph["trainer.loop"]
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]
