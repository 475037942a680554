"""`rayddpm completion bash|zsh`: a script by which a shell completes commands, options, choices and paths."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal, get_origin

from common import documentation
from common.command_line import CommandLine, command_parser
from common.command_line import run as run_command_line
from common.parser import Parser
from common.values import choices_of, without_none
from trainer.config.options import train_parser


def bash() -> None:
    """Print a script for bash: rayddpm completion bash > ~/.local/share/bash-completion/completions/rayddpm."""
    print(_script("bash"))


def zsh() -> None:
    """Print a script for zsh: rayddpm completion zsh > a folder of $fpath, as _rayddpm."""
    print(_script("zsh"))


COMMAND_LINE = CommandLine(
    prog="rayddpm completion",
    description="Print a script that completes commands, options, choices and paths.",
    commands={"bash": bash, "zsh": zsh},
    examples=("bash > ~/.local/share/bash-completion/completions/rayddpm", "zsh > ~/.zfunc/_rayddpm"),
)
COMMAND_LINES = {
    "data": "data_pipeline.commands",
    "models": "models.cli.commands",
    "eval": "eval.cli.commands",
    "cluster": "cluster.commands",
}
"""Command of rayddpm -> the module that holds its COMMAND_LINE."""


def main(arguments: Sequence[str], prog: str | None = None) -> int:
    """Exit code: 0 done, 2 a user's error."""
    return run_command_line(COMMAND_LINE, arguments, prog)


def _script(shell: Literal["bash", "zsh"]) -> str:
    import shtab

    return str(shtab.complete(whole_parser(), shell=shell))


def whole_parser() -> argparse.ArgumentParser:
    """All commands and options as one tree of parsers."""
    root = argparse.ArgumentParser(prog="rayddpm")
    groups = root.add_subparsers()
    _add(groups, "train", "Train a DDPM", train_parser("demo", "rayddpm train"))
    for name, module in COMMAND_LINES.items():
        line = import_module(module).COMMAND_LINE
        commands = groups.add_parser(name, help=line.description).add_subparsers()
        for command, function in line.commands.items():
            parser = command_parser(function, f"rayddpm {name} {command}")
            _add(commands, command, documentation.summary(function), parser)
    shells = groups.add_parser("completion", help=COMMAND_LINE.description).add_subparsers()
    for shell in COMMAND_LINE.commands:
        shells.add_parser(shell)
    return root


def _add(group: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str, parser: Parser) -> None:
    import shtab

    for action, kind in parser.values:
        plain, _ = without_none(kind)
        if action.nargs != 0 and (get_origin(plain) is Literal or plain is bool):
            action.choices = choices_of(plain)
        if plain is Path or action.dest in ("source", "dest", "snapshot"):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    group.add_parser(name, help=text, parents=[parser], add_help=False)
