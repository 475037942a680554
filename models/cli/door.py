"""Command line to function calls: options from signatures, help from docstrings, errors in one line, exit code 2.

Commands are imported in models.commands, which imports torch only when one runs, so that `--help` answers at once.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import jsonargparse
from docstring_parser import parse as parse_docstring

from models.cli import commands

COMMANDS: dict[str, Callable[..., None]] = {
    "sample": commands.sample,
    "inspect": commands.inspect,
    "likelihood": commands.likelihood,
    "export": commands.export_snapshot,
    "import": commands.import_snapshot,
}

# Path has no readable name in the help texts of jsonargparse.
AS_TEXT: dict[Any, Any] = {Path: str, Path | None: str | None}


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns the exit code: 0, or 2 after one line `error: ...` on stderr."""
    # Threads that spin while they wait make small networks several times slower on a machine that is busy with
    # other work. Read by the OpenMP runtime when torch is first imported, which no line above does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        chosen = make_parser().parse_args(list(arguments))
        name = chosen.command
        COMMANDS[name](**_with_paths(COMMANDS[name], vars(chosen[name])))
    except (ValueError, OSError, jsonargparse.ArgumentError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


def make_parser() -> jsonargparse.ArgumentParser:
    """The parser of all commands: parameters without a default are positional, the others are --options."""
    parser = jsonargparse.ArgumentParser(
        prog="python -m models",
        description="Sample from trained diffusion models, measure their likelihood, convert and inspect them.",
        exit_on_error=False,
    )
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands")
    for name, function in COMMANDS.items():
        documentation = parse_docstring(function.__doc__ or "")
        text = " ".join(part for part in (documentation.short_description, documentation.long_description) if part)
        subparser = jsonargparse.ArgumentParser(exit_on_error=False, description=text)
        _add_parameters(subparser, function, {p.arg_name: p.description or "" for p in documentation.params})
        subcommands.add_subcommand(name, subparser, help=documentation.short_description)
    return parser


def _add_parameters(
    parser: jsonargparse.ArgumentParser, function: Callable[..., None], descriptions: dict[str, str]
) -> None:
    hints = get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        settings: dict[str, Any] = {"type": AS_TEXT.get(hints[name], hints[name]), "help": descriptions[name]}
        if parameter.default is inspect.Parameter.empty:
            parser.add_argument(name, metavar=name.upper(), **settings)
        else:
            default = str(parameter.default) if hints[name] is Path else parameter.default
            parser.add_argument("--" + name.replace("_", "-"), default=default, **settings)


def _with_paths(function: Callable[..., None], values: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(function)
    return {
        name: Path(value) if hints[name] in AS_TEXT and value is not None else value for name, value in values.items()
    }


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
