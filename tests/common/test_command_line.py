"""Functions become a command line: what is typed, what arrives, what help says, and what a mistake is answered with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from common.command_line import CommandLine, run
from common.interrupt import Interrupted


@dataclass(frozen=True)
class Oven:
    """How it is baked."""

    degrees: float = 180.0
    """Heat in °C; 100% of it."""
    num_minutes: int | None = None
    """Until it is done
    if not given."""

    def __post_init__(self) -> None:
        if self.degrees > 300:
            raise ValueError(f"degrees={self.degrees}: at most 300")


CALLS: list[dict[str, Any]] = []
_OVEN, _SPICES = Oven(), ["salt"]


def bake(
    recipe: Path,
    kind: Literal["bread", "cake"] = "bread",
    layer_widths: tuple[int, ...] = (3, 2),
    num_eggs: int = 2,
    spice: list[str] = _SPICES,
    dry_run: bool = False,
    steam: bool = True,
    oven: Oven = _OVEN,
) -> None:
    """Bake by a recipe.

    The second paragraph.

    Args:
        recipe: the file that says how
        kind: what it becomes
        layer_widths: widths of the layers,
            from below
        num_eggs: how many
        spice: give it again for each further one
        dry_run: only say what would be done
        steam: with steam
    """
    CALLS.append(locals())


def weigh(*items: str) -> int:
    """Weigh what follows."""
    CALLS.append({"items": items})
    return 3


def order(names: list[str], *, num_guests: int) -> None:
    """Order for guests.

    Args:
        names: dishes
        num_guests: of them
    """
    if num_guests < 0:
        raise OSError("num_guests\nis negative")
    if num_guests > 9:
        raise Interrupted("the kitchen is closed")
    if num_guests > 8:
        raise KeyboardInterrupt
    if num_guests > 7:
        raise RuntimeError("too many guests")
    CALLS.append(locals())


LINE = CommandLine(
    prog="cook",
    description="A kitchen.",
    commands={"bake": bake, "weigh": weigh, "order": order},
    examples=("bake bread.txt --num-eggs 3",),
    interrupted={"order": "the table stays reserved"},
    errors=(RuntimeError,),
)


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def called(*arguments: str) -> dict[str, Any]:
    """The parameters that the command was called with."""
    assert run(LINE, arguments) == 0
    [call] = CALLS
    return call


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command ends with whose exit code is 2."""
    assert run(LINE, arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    [line] = output.err.splitlines()
    assert line.startswith("error: ")
    assert not CALLS
    return line.removeprefix("error: ")


def test_what_is_not_given_keeps_the_functions_defaults() -> None:
    assert called("bake", "a.txt") == {
        **{"recipe": Path("a.txt"), "kind": "bread", "layer_widths": (3, 2), "num_eggs": 2, "spice": ["salt"]},
        **{"dry_run": False, "steam": True, "oven": Oven()},
    }


@pytest.mark.parametrize("option", ["--num-eggs", "--num_eggs"])
@pytest.mark.parametrize("joined", [True, False])
def test_options_are_read_with_dashes_and_with_underscores(option: str, joined: bool) -> None:
    given = [f"{option}=5"] if joined else [option, "5"]
    assert called("bake", *given, "a_b.txt")["num_eggs"] == 5
    assert CALLS[0]["recipe"] == Path("a_b.txt")


@pytest.mark.parametrize("text", ["4,5,6", "[4, 5, 6]", "(4,5,6)", "4,5,6,"])
def test_a_tuple_is_written_with_commas(text: str) -> None:
    assert called("bake", "a.txt", "--layer-widths", text)["layer_widths"] == (4, 5, 6)


def test_switches_lists_and_fields_of_a_dataclass() -> None:
    typed = [
        "--dry-run",
        "--no-steam",
        "--spice",
        "pepper",
        "--spice",
        "dill",
        "--degrees",
        "2e2",
        "--num_minutes",
        "9",
    ]
    call = called("bake", "a.txt", *typed)
    assert (call["dry_run"], call["steam"], call["spice"]) == (True, False, ["pepper", "dill"])
    assert call["oven"] == Oven(200.0, 9)


def test_a_value_that_may_be_absent_can_be_given_as_none() -> None:
    assert called("bake", "a.txt", "--num-minutes", "none")["oven"].num_minutes is None


def test_an_option_that_must_be_given_and_several_names_side_by_side() -> None:
    assert called("order", "soup", "fish", "--num-guests", "2") == {"names": ["soup", "fish"], "num_guests": 2}


def test_what_follows_two_dashes_arrives_as_it_was_typed_with_the_exit_code_of_the_function() -> None:
    assert run(LINE, ["weigh", "--", "--num_eggs", "3", "--", "--help"]) == 3
    assert CALLS == [{"items": ("--num_eggs", "3", "--", "--help")}]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "a command is missing: bake, weigh, order; see cook --help"),
        ("bakke", "cook has no command bakke; did you mean bake?"),
        ("zzz", "cook has no command zzz; there are bake, weigh, order"),
        ("bake", "RECIPE is missing; see cook bake --help"),
        ("bake a.txt b.txt", "b.txt is not expected here; see cook bake --help"),
        ("bake a.txt --num_egs 3", "unknown option --num-egs; did you mean --num-eggs?"),
        ("bake a.txt --num-egg 3", "unknown option --num-egg; did you mean --num-eggs?"),
        ("bake a.txt --colour red", "unknown option --colour; see cook bake --help"),
        ("bake a.txt --num-eggs", "--num-eggs: a value is missing; see cook bake --help"),
        ("bake a.txt --num-eggs few", "--num-eggs few: a whole number is needed; see cook bake --help"),
        ("bake a.txt --num-eggs 1.5", "--num-eggs 1.5: a whole number is needed; see cook bake --help"),
        ("bake a.txt --degrees hot", "--degrees hot: a number is needed; see cook bake --help"),
        ("bake a.txt --layer-widths 1,x", "--layer-widths 1,x: a whole number is needed; see cook bake --help"),
        ("bake a.txt --kind cak", "--kind cak: choose one of bread, cake; did you mean cake?"),
        ("bake a.txt --dry-run=yes", "--dry-run yes: it takes no value; see cook bake --help"),
        ("bake a.txt --degrees 301", "degrees=301.0: at most 300"),
        ("order --num-guests 2", "NAMES is missing; see cook order --help"),
        ("order soup", "--num-guests is missing; see cook order --help"),
        ("order --num-guest 2", "unknown option --num-guest; did you mean --num-guests?"),
        ("order soup --num-guests -1", "num_guests is negative"),
        ("order soup --num-guests 8", "too many guests"),
        ("weigh 3", "what follows -- is missing: cook weigh -- ARGUMENTS"),
    ],
)
def test_a_mistake_is_answered_with_what_was_typed_and_what_is_allowed(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error(capsys, *typed.split()) == said


@pytest.mark.parametrize(("guests", "line"), [("9", "the table stays reserved"), ("10", "the kitchen is closed")])
def test_ctrl_c_ends_with_one_line_and_code_130(
    guests: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processes below this one are of other tests (tests/common/test_interrupt.py is about those of a command).
    monkeypatch.setattr("common.interrupt.end_descendants", lambda: None)
    assert run(LINE, ["order", "soup", "--num-guests", guests]) == 130
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_commands_with_examples_as_the_line_was_called(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(LINE, [option], "rayddpm cook") == 0
    text = capsys.readouterr().out
    assert "usage: rayddpm cook COMMAND" in text
    assert "  bake   Bake by a recipe.\n" in text
    assert "  rayddpm cook bake bread.txt --num-eggs 3\n" in text


def test_help_of_a_command_says_what_each_option_means_and_what_is_used_without_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "112")
    assert run(LINE, ["bake", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: cook bake" in text
    assert "Bake by a recipe. The second paragraph. positional arguments: RECIPE the file that says how" in text
    for said in (
        "--kind {bread,cake} what it becomes (default: bread)",
        "--layer-widths N,N,... widths of the layers, from below (default: 3,2)",
        "--spice TEXT give it again for each further one (default: salt)",
        "--dry-run only say what would be done --steam, --no-steam",
        "--degrees X Heat in °C; 100% of it. (default: 180.0)",
        "--num-minutes N Until it is done if not given.",
    ):
        assert said in text


@pytest.mark.parametrize("arguments", [["--version"], ["bake", "--version"]])
def test_every_command_says_its_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(LINE, arguments) == 0
    assert capsys.readouterr().out.startswith("rayddpm ")
