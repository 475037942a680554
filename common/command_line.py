"""From plain functions to subcommands: typed options with dashes, one-line errors, exit code 2 for a user's error."""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

USER_ERROR = 2

Command = Callable[..., int | None]
"""A parameter without a default is positional, the others are options. A list[...] parameter takes one or more values:
a positional one side by side, an option by being repeated; a bool that defaults to False is a flag; a frozen dataclass
brings its fields as options. Help comes from the docstring's `Args:` and from the fields' own docstrings."""


def run_command(commands: Mapping[str, Command], arguments: list[str], prog: str, description: str) -> int:
    """Parse, call, and turn what a user can cause into one `error:` line on stderr. Returns the exit code."""
    parser = _build_parser(commands, prog, description)
    try:
        parsed = parser.parse_args(arguments)
    except ArgumentError as error:
        print(f"error: {_explain(str(error), commands)}; see {prog} --help", file=sys.stderr)
        return USER_ERROR
    function = commands[parsed.subcommand]
    try:
        return function(**_arguments(function, parsed[parsed.subcommand])) or 0
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR


def _arguments(function: Command, parsed: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            names = [field.name for field in dataclasses.fields(parameter.annotation)]
            values[name] = cast(type, parameter.annotation)(**{field: parsed[field] for field in names})
        elif parsed[name] is None:
            values[name] = parameter.default  # argparse would append to a list given as its default
        else:
            values[name] = parsed[name]
    return values


def _build_parser(commands: Mapping[str, Command], prog: str, description: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    subcommands = parser.add_subcommands(metavar="COMMAND")
    for name, function in commands.items():
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        subparser = ArgumentParser(description=summary, exit_on_error=False)
        _add_arguments(subparser, function)
        subcommands.add_subcommand(name, subparser, help=summary)
    return parser


def _add_arguments(parser: ArgumentParser, function: Command) -> None:
    for name, parameter in inspect.signature(function).parameters.items():
        text = _parameter_help(function, name)
        required = parameter.default is parameter.empty
        if dataclasses.is_dataclass(parameter.annotation):
            parser.add_class_arguments(parameter.annotation, as_group=False)
        elif parameter.default is False:
            parser.add_argument(f"--{name}", action="store_true", help=text)
        elif get_origin(parameter.annotation) is list:
            [item] = get_args(parameter.annotation)
            if required:
                parser.add_argument(name, nargs="+", type=item, metavar=name.upper(), help=text)
            else:
                parser.add_argument(
                    f"--{name}", action="append", type=item, help=f"{text} (default: {parameter.default})"
                )
        elif required:
            parser.add_argument(name, type=parameter.annotation, metavar=name.upper(), help=text)
        else:
            parser.add_argument(f"--{name}", type=parameter.annotation, default=parameter.default, help=text)
    for action in parser._actions:
        # Options read --num-threads, as everywhere else; --num_threads stays understood.
        dashed = [option.replace("_", "-") for option in action.option_strings]
        action.option_strings = dashed
        parser._option_string_actions.update(dict.fromkeys(dashed, action))


def _parameter_help(function: Command, name: str) -> str:
    found = re.search(rf"^ +{name}: (.+)$", function.__doc__ or "", re.MULTILINE)
    return found[1] if found else ""


def _explain(message: str, commands: Mapping[str, Command]) -> str:
    """jsonargparse's message as one line: the option, the value given and what it should be."""
    key = re.search(r'Parser key "(?:\w+\.)?(\w+)"', message)
    given = re.search(r"(?:Given|Got) value: ([^\n]*)", message)
    if not key or not given:
        return re.sub(rf"\b({'|'.join(commands)})\.", "", " ".join(message.split()))
    choices = re.search(r"typing\.Literal(\[[^\]]*\])|a <class '(\w+)'>|[Ee]xpected <class '(\w+)'>", message)
    expected = next((found for found in choices.groups() if found), "") if choices else "another type"
    return f"--{key[1].replace('_', '-')} {given[1].strip()}: {expected} is expected"
