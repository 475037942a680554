"""From plain functions to a command line: subcommands, typed options, help, exit codes; errors are one line."""

import argparse
import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, get_args, get_origin

from common import documentation
from common.checks import did_you_mean
from common.entry import guarded
from common.parser import Parser, UsageError

Command = Callable[..., int | None]
"""A parameter without a default is positional, or an option that must be given if it is keyword-only; the others are
options. A list[...] takes one or more values: a positional one side by side, an option by being repeated; a bool is a
switch; a frozen dataclass brings its fields as options; *arguments takes all that follows `--`. Help comes from the
docstring's `Args:` and from the docstrings of fields. Returns the exit code, None for 0."""

_DEFAULT_LINE = "interrupted"


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """The commands of one package."""

    prog: str
    """How it is called without an installed rayddpm, such as `python -m models`."""
    description: str
    commands: Mapping[str, Command]
    examples: Sequence[str] = ()
    """Whole command lines without the prog."""
    interrupted: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Command -> the line that ends it after Ctrl-C or SIGTERM: what is kept, how to go on."""
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables to set, unless they are set, before a command imports its libraries."""
    errors: tuple[type[Exception], ...] = ()
    """What a user can cause, beside ValueError and OSError."""


def run(line: CommandLine, arguments: Sequence[str], prog: str | None = None) -> int:
    """Parse, call, and turn what a user can cause into one `error:` line on stderr. Returns the exit code.

    prog: how it was called, if not by line.prog.
    """
    named = arguments[0] if arguments else ""
    interrupted = line.interrupted.get(named, _DEFAULT_LINE)
    return guarded(lambda: _run(line, list(arguments), prog or line.prog), interrupted, line.errors)


def run_script(function: Command) -> NoReturn:
    """Run the one function that a script is made of, with the arguments of this process, and exit."""
    arguments, prog = sys.argv[1:], f"python {sys.argv[0]}"
    sys.exit(guarded(lambda: _call(function, arguments, prog) or 0, _DEFAULT_LINE))


def command_parser(function: Command, prog: str) -> Parser:
    """The parser of one command."""
    parameters = inspect.signature(function, eval_str=True).parameters
    usage = f"{prog} [-h] -- ARGUMENTS" if _takes_rest(parameters) else None
    parser = Parser(prog=prog, usage=usage, description=documentation.description(function))
    texts = documentation.parameters(function)
    for name, parameter in parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            _add_fields(parser, parameter)
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            _add_parameter(parser, parameter, texts.get(name, ""))
    return parser


def overview(line: CommandLine, prog: str) -> str:
    """The help of all commands."""
    width = max(map(len, line.commands))
    rows = [f"  {name:{width}}  {documentation.summary(function)}" for name, function in line.commands.items()]
    parts = [f"usage: {prog} COMMAND [OPTIONS]", line.description.strip(), "commands:\n" + "\n".join(rows)]
    if line.examples:
        parts.append("examples:\n" + "\n".join(f"  {prog} {example}" for example in line.examples))
    return "\n\n".join([*parts, f"{prog} COMMAND --help explains a command; --version says which version this is."])


def choose(name: str, known: Sequence[str], prog: str) -> str:
    """`name`, if it is one of the known commands. Raises UsageError."""
    if name not in known:
        near = did_you_mean(name, known) or f"; there are {', '.join(known)}"
        raise UsageError(f"{prog} has no command {name}{near}")
    return name


def version() -> str:
    """The line of --version."""
    import importlib.metadata

    try:
        return f"rayddpm {importlib.metadata.version('rayddpm')}"
    except importlib.metadata.PackageNotFoundError:
        return "rayddpm (not installed)"


def _run(line: CommandLine, arguments: list[str], prog: str) -> int:
    if not arguments:
        raise UsageError(f"a command is missing: {', '.join(line.commands)}; see {prog} --help")
    if arguments[0] in ("-h", "--help", "--version"):
        print(version() if arguments[0] == "--version" else overview(line, prog))
        return 0
    name = choose(arguments[0], list(line.commands), prog)
    if "--version" in arguments:
        print(version())
        return 0
    for variable, value in line.environment.items():
        os.environ.setdefault(variable, value)
    return _call(line.commands[name], arguments[1:], f"{prog} {name}") or 0


def _call(function: Command, arguments: list[str], prog: str) -> int | None:
    parameters = inspect.signature(function, eval_str=True).parameters
    rest: list[str] = []
    if _takes_rest(parameters):
        if "--" not in arguments and not {"-h", "--help"} & {*arguments}:
            raise UsageError(f"what follows -- is missing: {prog} -- ARGUMENTS")
        cut = arguments.index("--") if "--" in arguments else len(arguments)
        arguments, rest = arguments[:cut], arguments[cut + 1 :]
    parsed = vars(command_parser(function, prog).parse_args(arguments))
    named = {}
    for name, parameter in parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            given = {
                field.name: parsed[field.name]
                for field in dataclasses.fields(parameter.annotation)
                if field.name in parsed
            }
            named[name] = dataclasses.replace(parameter.default, **given)
        elif name in parsed:
            named[name] = parsed[name]
    return function(*rest, **named)


def _takes_rest(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())


def _add_fields(parser: Parser, parameter: inspect.Parameter) -> None:
    texts = documentation.fields(parameter.annotation)
    for field in dataclasses.fields(parameter.annotation):
        default = getattr(parameter.default, field.name)
        parser.add_value(f"--{field.name}", field.type, texts.get(field.name, ""), default)


def _add_parameter(parser: Parser, parameter: inspect.Parameter, text: str) -> None:
    kind, default, name = parameter.annotation, parameter.default, parameter.name
    required = default is parameter.empty
    if required and parameter.kind is not parameter.KEYWORD_ONLY:
        many = {"nargs": "+"} if get_origin(kind) is list else {}
        parser.add_value(name, get_args(kind)[0] if many else kind, text, **many)
    elif required:
        parser.add_value(f"--{name}", kind, text, required=True)
    elif kind is bool:
        switch = argparse.BooleanOptionalAction if default else "store_true"
        parser.add_value(f"--{name}", kind, text, default, action=switch)
    elif get_origin(kind) is list:
        parser.add_value(f"--{name}", get_args(kind)[0], text, default, action="append")
    else:
        parser.add_value(f"--{name}", kind, text, default)
