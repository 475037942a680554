"""The command line: preset, TOML file and options make a config; what is not understood is one line that helps."""

import argparse
import difflib
import re
import tomllib
from pathlib import Path
from typing import Literal, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from trainer.config.config import Config, to_dict
from trainer.config.plan import Launcher
from trainer.config.presets import PRESETS

_DESCRIPTION = """Train a DDPM. Start with a preset, change any field with --section.field VALUE.
The same command again resumes the run at its newest checkpoint."""


class Options(NamedTuple):
    preset: str
    launcher: Launcher
    dry_run: bool
    force_changes: bool
    config: Config


def parse(arguments: list[str]) -> Options:
    """Preset < TOML file < --section.field, in whatever order they are given.

    Raises ValueError with one line for anything that is not understood, OSError for a file that cannot be read.
    """
    try:
        arguments = _files_first(arguments)
        preset = _parser("demo").parse_args(arguments).preset
        parser = _parser(preset)
        parsed = parser.parse_args(arguments)
        sections = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ValueError(_one_line(str(error))) from error
    config = Config(**{name: sections[name] for name in Config.__dataclass_fields__})
    return Options(preset, parsed.launcher, parsed.dry_run, parsed.force_changes, config)


def _files_first(arguments: list[str]) -> list[str]:
    """The same arguments with --config before all others: the parser lets what comes later win."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[], type=Path)
    found, others = finder.parse_known_args(arguments)
    for path in found.config:
        _check_file(path)
    return [*(f"--config={path}" for path in found.config), *others]


def _check_file(path: Path) -> None:
    """Raises ValueError, naming the file, unless it is TOML whose sections are tables."""
    if path.is_dir():
        raise ValueError(f"--config {path} is a folder: give a TOML file")
    if not path.exists():
        raise ValueError(f"--config {path} does not exist: give a TOML file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {path} is not TOML: {error}") from error
    for section in Config.__dataclass_fields__.keys() & content.keys():
        if not isinstance(content[section], dict):
            raise ValueError(
                f"--config {path}: {section} is {content[section]!r}; write [{section}] and its fields below it"
            )


def _parser(preset: str) -> ArgumentParser:
    """A parser whose defaults are the preset's values."""
    parser = ArgumentParser(
        prog="python trainer/main.py",
        description=_DESCRIPTION,
        exit_on_error=False,
        parser_mode="toml",
        allow_abbrev=False,  # _files_first knows --config by its whole name only
    )
    parser.add_argument("--preset", type=Literal[tuple(PRESETS)], default=preset, help="the values to start from")
    parser.add_argument(
        "--config", action="config", help="TOML file with [section] tables; over the preset, under the options"
    )
    parser.add_argument("--launcher", type=Launcher, default="ray", help="local: plain processes on this machine")
    parser.add_argument("--dry-run", action="store_true", help="print the resulting run as JSON and exit")
    parser.add_argument(
        "--force-changes", action="store_true", help="go on with a run although what it trains was changed; recorded"
    )
    values = to_dict(PRESETS[preset]())
    for name, section in Config.__dataclass_fields__.items():
        parser.add_class_arguments(section.type, name)
        parser.set_defaults({f"{name}.{key}": value for key, value in values[name].items()})
    return parser


def _one_line(message: str) -> str:
    """The message without the parser's own wrapping, and with the nearest known option for a mistyped one."""
    message = re.sub(r"\s+", " ", message).strip()
    message = re.sub(r"a <class .(\w+).>|a typing\.Literal", lambda found: found[1] or "one of ", message)
    message = re.sub(r"^Group '(\w+)' does not accept option '(\w+)'", r"unrecognized key: \1.\2", message)
    message = re.sub(r"^Option '([\w.]+)' is not accepted", r"unrecognized key: \1", message)
    unknown = re.match(r"unrecognized (?:arguments: --|key: )([\w.\-]+)", message)
    if unknown:
        known = [f"{s}.{f}" for s, fields in to_dict(PRESETS["demo"]()).items() for f in fields]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        message += f"; did you mean --{near[0]}?" if near else "; --help lists what there is"
    return message
