"""The parser of every command line: dashes and underscores alike, whole names only, mistakes in words of the user."""

import argparse
import itertools
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from common.checks import did_you_mean
from common.values import placeholder, read_value, show_value

_MESSAGES = {
    r"^argument (\S+): expected one argument$": r"\1: a value is missing",
    r"^argument (\S+): expected at least one argument$": r"\1: a value is missing",
    r"^argument (\S+): ignored explicit argument '(.*)'$": r"\1 \2: it takes no value",
    r"^the following arguments are required: (.*)$": r"\1 is missing",
    r"^argument (\S+): ": r"\1 ",
}
"""What argparse says, and how we say it."""


class UsageError(ValueError):
    """A command line that is not understood; the message is one line that names what was typed."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing a usage and exiting."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Formatter, **settings)
        self.values: list[tuple[argparse.Action, Any]] = []
        """What was added by `add_value`, with its type."""

    def add_value(
        self, name: str, kind: Any, text: str, default: Any = None, group: Any = None, **settings: Any
    ) -> argparse.Action:
        """An option --NAME, or a positional argument NAME, of type `kind`, with its help and what is used without it.

        What is not given is not among the parsed values.
        """
        if name.startswith("--"):
            settings = {"dest": name[2:].replace("-", "_"), "default": argparse.SUPPRESS, **settings}
            name = with_dashes(name)
        settings.setdefault("metavar", placeholder(kind) if name.startswith("--") else name.upper())
        if settings.get("action") not in ("store_true", argparse.BooleanOptionalAction):
            settings["type"] = _converter(kind)
        else:
            del settings["metavar"]
        nothing = default is None or default is False or default in ("", (), [])
        shown = "" if nothing else f" (default: {show_value(default)})"
        action: argparse.Action = (group or self).add_argument(name, help=(text + shown).replace("%", "%%"), **settings)
        self.values.append((action, kind))
        return action

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does. Raises UsageError."""
        arguments = dashed(args or [])
        try:
            parsed, unknown = self.parse_known_args(arguments, namespace)
        except UsageError:
            # The value of an option that does not exist may have been read as a positional argument.
            self._refuse_unknown_options(arguments)
            raise
        if unknown:
            self._refuse(unknown[0])
        return parsed

    def error(self, message: str) -> NoReturn:
        for pattern, ours in _MESSAGES.items():
            if re.search(pattern, message, re.DOTALL):
                message = re.sub(pattern, ours, message, count=1, flags=re.DOTALL)
                break
        raise UsageError(message if "did you mean" in message else f"{message}; see {self.prog} --help")

    def _options(self) -> list[str]:
        return ["--help", *(option for action, _ in self.values for option in action.option_strings)]

    def _refuse_unknown_options(self, arguments: Sequence[str]) -> None:
        ours = itertools.takewhile(lambda argument: argument != "--", arguments)
        for argument in ours:
            if argument.startswith("--") and argument.partition("=")[0] not in self._options():
                self._refuse(argument)

    def _refuse(self, argument: str) -> NoReturn:
        if not argument.startswith("--"):
            raise UsageError(f"{argument} is not expected here; see {self.prog} --help")
        name = argument.partition("=")[0]
        raise UsageError(f"unknown option {name}{did_you_mean(name, self._options()) or f'; see {self.prog} --help'}")


class _Formatter(argparse.HelpFormatter):
    """Paragraphs and examples stay as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(shutil.get_terminal_size().columns, 110) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            part if "\n" in part else argparse.HelpFormatter._fill_text(self, part, width, indent)
            for part in paragraphs
        )


def with_dashes(option: str) -> str:
    """--num_steps=a_b -> --num-steps=a_b."""
    name, equals, value = option.partition("=")
    return name.replace("_", "-") + equals + value


def dashed(arguments: Sequence[str]) -> list[str]:
    """The arguments with every option's name spelled with dashes."""
    return [with_dashes(argument) if argument.startswith("--") else argument for argument in arguments]


def _converter(kind: Any) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return read_value(kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from None

    return convert
