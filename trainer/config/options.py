"""The options of training: preset, TOML file and command line make a config; mistakes are one line that helps."""

import dataclasses
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

from common import documentation
from common.checks import did_you_mean
from common.command_line import version
from common.parser import Parser, dashed
from common.values import read_toml_value, show_value
from trainer.config.config import Config, Launcher, to_dict
from trainer.config.presets import PRESETS

PROG = "python trainer/main.py"
_DESCRIPTION = """Train a DDPM. Start with a preset, change any field with --section.field VALUE.
The same command again resumes the run at its newest checkpoint."""
_EXAMPLES = (
    "--preset demo --launcher local",
    "--preset small32 --data.path data/photos --launcher local",
    "--preset celebahq64 --data.path data/photos --run.storage runs --train.num-steps 100000",
    "--preset cifar10 --model.channel-multipliers 1,2,2 --dry-run",
)
_PRESET_KIND = Literal[tuple(PRESETS)]  # type: ignore[valid-type]


class Options(NamedTuple):
    preset: str
    launcher: Launcher
    dry_run: bool
    force_changes: bool
    allow_long_cpu_run: bool
    given: frozenset[str]
    """section.field of what the user set, by option or file."""
    config: Config


def parse(arguments: list[str], prog: str = PROG) -> Options:
    """Preset < TOML file < --section.field, in whatever order they are given. Prints and exits for --help and the like.

    Raises ValueError with one line for anything that is not understood, OSError for a file that cannot be read.
    """
    beginning = Parser(prog=prog, add_help=False)
    _add_beginning(beginning, "demo")
    start = vars(beginning.parse_known_args(dashed(arguments))[0])
    file: dict[str, Any] = {}
    for path in start.get("config", []):
        file |= _read_file(path)
    preset = start.get("preset", file.get("preset", "demo"))
    given = vars(train_parser(preset, prog).parse_args(arguments))
    config = _with_values(PRESETS[preset](), file | given)
    if "print_config" in given:
        print(as_toml(preset, config), end="")
        raise SystemExit(0)
    launcher = given.get("launcher", file.get("launcher", "ray"))
    return Options(
        preset,
        launcher,
        "dry_run" in given,
        "force_changes" in given,
        "allow_long_cpu_run" in given,
        frozenset(file | given),
        config,
    )


def as_toml(preset: str, config: Config) -> str:
    """A file for --config that makes `config`."""
    lines = [f'preset = "{preset}"']
    for section, values in to_dict(config).items():
        # Numbers, text, true and lists of them are written alike in JSON and in TOML.
        lines += [
            "",
            f"[{section}]",
            *(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()),
        ]
    return "\n".join(lines) + "\n"


def train_parser(preset: str, prog: str) -> Parser:
    """A parser that shows the preset's values as defaults."""
    examples = "examples:\n" + "\n".join(f"  {prog} {example}" for example in _EXAMPLES)
    about = documentation.summary(PRESETS[preset])
    parser = Parser(
        prog=prog,
        description=f"{_DESCRIPTION}\n\nDefaults below are those of --preset {preset}: {about}",
        epilog=examples,
        usage=f"{prog} --preset NAME [--section.field VALUE ...]",
    )
    parser.add_argument("--version", action="version", version=version())
    _add_beginning(parser, preset)
    parser.add_value(
        "--launcher", Launcher, "ray: workers on a Ray cluster; local: plain processes on this machine", "ray"
    )
    parser.add_value("--dry-run", bool, "print the resulting run as JSON and exit", action="store_true")
    parser.add_value(
        "--print-config", bool, "print the resulting config as TOML, for --config, and exit", action="store_true"
    )
    parser.add_value(
        "--force-changes", bool, "go on with a run although what it trains was changed; recorded", action="store_true"
    )
    parser.add_value(
        "--allow-long-cpu-run", bool, "train on a CPU although it takes more than a day", action="store_true"
    )
    config = PRESETS[preset]()
    for section, kind in _sections().items():
        group = parser.add_argument_group(section, documentation.summary(kind))
        texts = documentation.fields(kind)
        for field, field_kind in get_type_hints(kind).items():
            default = getattr(getattr(config, section), field)
            given = {"nargs": "?", "const": True} if field_kind is bool else {}
            parser.add_value(f"--{section}.{field}", field_kind, texts[field], default, group, **given)
    return parser


def _add_beginning(parser: Parser, preset: str) -> None:
    """The options that decide what the others start from."""
    parser.add_value("--preset", _PRESET_KIND, "the values to start from", preset)
    parser.add_value(
        "--config", Path, "TOML file with [section] tables; over the preset, under the options", action="append"
    )


def _sections() -> dict[str, type]:
    return get_type_hints(Config)


def _with_values(config: Config, values: dict[str, Any]) -> Config:
    """`config` with those of the values that are called section.field."""
    sections = {}
    for section in _sections():
        changed = {name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{section}.")}
        sections[section] = dataclasses.replace(getattr(config, section), **changed)
    return Config(**sections)


def _read_file(path: Path) -> dict[str, Any]:
    """section.field -> value of a TOML file, and its preset and launcher. Raises ValueError, naming the file."""
    if path.is_dir():
        raise ValueError(f"--config {path} is a folder: give a TOML file")
    if not path.exists():
        raise ValueError(f"--config {path} does not exist: give a TOML file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {path} is not TOML: {error}") from error
    kinds: dict[str, Any] = {"preset": _PRESET_KIND, "launcher": Launcher}
    for section, kind in _sections().items():
        if not isinstance(content.get(section, {}), dict):
            raise ValueError(
                f"--config {path}: {section} is {content[section]!r}; write [{section}] and its fields below it"
            )
        kinds |= {f"{section}.{field}": field_kind for field, field_kind in get_type_hints(kind).items()}
    return {name: _read_value(path, kinds, name, value) for name, value in _flat(content)}


def _flat(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{field}".replace("-", "_"), inner) for field, inner in value.items())
        else:
            yield name, value


def _read_value(path: Path, kinds: dict[str, Any], name: str, value: Any) -> Any:
    if name not in kinds:
        raise ValueError(f"--config {path}: unknown key {name}{did_you_mean(name, kinds) or '; --help lists them'}")
    try:
        return read_toml_value(kinds[name], value)
    except ValueError as error:
        raise ValueError(f"--config {path}: {name} = {show_value(value)}: {error}") from None
