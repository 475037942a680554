"""Writes the tables of files in docs/ARCHITECTURE.md from the first paragraph of each file's docstring.

python docs/make_file_tables.py
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "models", "data_pipeline", "cluster", "eval", "trainer", "rayddpm")
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
HEADING = "\n## Files\n"


def file_tables() -> str:
    """One section for each package, one table for each of its folders."""
    return "".join(_package(ROOT / name) for name in PACKAGES)


def _package(package: Path) -> str:
    folders = [package, *sorted(init.parent for init in package.glob("*/__init__.py"))]
    return f"\n### `{package.name}/`\n" + "".join(_folder(folder) for folder in folders)


def _folder(folder: Path) -> str:
    name = folder.relative_to(ROOT).as_posix()
    rows = [f"| `{path.name}` | {_idea(path)} |" for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    table = "\n| file | its idea |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""
    return f"\n`{name}/`: {_idea(folder / '__init__.py')}\n{table}"


def _idea(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path} says nothing about itself: give it a docstring")
    return " ".join(docstring.partition("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8").partition(HEADING)[0]
    PAGE.write_text(before + HEADING + file_tables(), encoding="utf-8")
