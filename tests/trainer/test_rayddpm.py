"""All command lines together: help without heavy libraries, options of one spelling, completion."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

import pytest

from common.code import ROOT, command
from common.command_line import command_parser
from trainer.completion import COMMAND_LINES
from trainer.config.options import train_parser
from trainer.rayddpm import main

HEAVY = {"torch", "ray", "mlflow", "pandas", "scipy"}
COMMANDS = [
    (group, name) for group, module in COMMAND_LINES.items() for name in import_module(module).COMMAND_LINE.commands
]
_EVERY_HELP = """
import sys
from trainer.rayddpm import main
for command in sys.argv[1:]:
    assert main([*command.split(), "--help"]) == 0
loaded = {heavy!r} & sys.modules.keys()
assert not loaded, loaded
"""


def test_help_of_every_command_imports_no_heavy_library() -> None:
    every = ["", "train", "train --preset cifar10", "completion", *COMMAND_LINES, *map(" ".join, COMMANDS)]
    code = _EVERY_HELP.format(heavy=HEAVY)
    shown = subprocess.run([sys.executable, "-c", code, *every], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("usage: rayddpm") == len(every)


@pytest.mark.parametrize("entry", ["-m models", "-m data_pipeline", "-m cluster", "-m eval", "trainer/main.py"])
def test_every_entry_point_has_help_and_a_version(entry: str) -> None:
    for option, start in (("--help", f"usage: python {entry}"), ("--version", "rayddpm ")):
        arguments = [sys.executable, *entry.split(), option]
        shown = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout.startswith(start)


def options() -> Iterator[tuple[str, str, str]]:
    """(command, option, help) of all commands."""
    for group, name in COMMANDS:
        function = import_module(COMMAND_LINES[group]).COMMAND_LINE.commands[name]
        for action, _ in command_parser(function, "").values:
            yield f"{group} {name}", (action.option_strings or [action.dest])[0], action.help or ""
    for action, _ in train_parser("demo", "").values:
        yield "train", action.option_strings[0], action.help or ""


def test_every_option_is_explained_and_spelled_with_dashes() -> None:
    found = list(options())
    assert len(found) > 100
    unexplained = [(name, option) for name, option, text in found if len(re.sub(r"\(default.*", "", text)) < 5]
    assert not unexplained
    assert not [option for _, option, _ in found if option.startswith("-") and "_" in option]


def test_one_idea_has_one_name_everywhere() -> None:
    names = {option for _, option, _ in options()}
    others = {
        "--output": {"--out", "--output-dir", "--output-folder", "--dest", "--folder"},
        "--device": {"--gpu", "--use-gpu"},
        "--num-threads": {"--threads", "--num-cores"},
        "--num-processes": {"--num-workers", "--jobs"},
        "--num-sampling-steps": {"--sampling-steps", "--num-timesteps", "--steps"},
        "--batch-size": {"--sampling-batch-size"},
        "--num-images": {"--num-samples", "--count"},
        "--seed": {"--random-seed"},
        "--weights-folder": {"--weights"},
    }
    assert others.keys() <= names
    assert not set().union(*others.values()) & names


@pytest.mark.parametrize("group", COMMAND_LINES)
def test_every_line_that_a_signal_ends_with_belongs_to_a_command(group: str) -> None:
    line = import_module(COMMAND_LINES[group]).COMMAND_LINE
    assert line.interrupted.keys() <= line.commands.keys()
    assert len(line.examples) >= 2


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["modles"], "did you mean models?"),
        (["models", "sampel"], "rayddpm models has no command sampel; did you mean sample?"),
        (["train", "--preset", "celebahq265"], "did you mean celebahq256?"),
        (["eval", "run", str(ROOT), "--protocl", "x"], "did you mean --protocol?"),
    ],
)
def test_what_is_mistyped_gets_a_proposal(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed) == 2
    assert said in capsys.readouterr().err


def completions(script: str, *words: str) -> set[str]:
    """What bash offers for the last word."""
    code = (
        script
        + """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_rayddpm
printf "%s\n" "${COMPREPLY[@]}"
"""
    )
    shown = subprocess.run(["bash", "-c", code, "bash", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(shown.stdout.split())


def test_bash_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert {"train", "data", "models", "eval", "cluster"} <= completions(script, "rayddpm", "")
    assert "sample" in completions(script, "rayddpm", "models", "")
    assert completions(script, "rayddpm", "models", "sample", "--num") == {"--num-images", "--num-sampling-steps"}
    assert "cifar10" in completions(script, "rayddpm", "train", "--preset", "")
    assert completions(script, "rayddpm", "train", "--train.num") == {"--train.num-steps"}


def test_zsh_gets_a_script_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef rayddpm")


def test_a_sub_process_takes_our_packages_whatever_folder_it_starts_in(tmp_path) -> None:
    for name in ("models", "eval", "common"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    shown = subprocess.run(command("models", "--help"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
