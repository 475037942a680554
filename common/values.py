"""Values of options: read from what a user types by the type of the setting, and shown as one would type them."""

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from common.checks import did_you_mean

_WORDS = {"true": True, "yes": True, "false": False, "no": False}


def read_value(kind: Any, text: str) -> Any:
    """The value of type `kind` that `text` stands for. Raises ValueError that says what is allowed, without `text`.

    kind: int, float, bool, str, Path, a Literal, tuple[KIND, ...] (written 1,2 or [1, 2]), or one of these | None.
    """
    kind, optional = without_none(kind)
    if optional and text.lower() == "none":
        return None
    if get_origin(kind) is Literal:
        return _read_choice(kind, text)
    if get_origin(kind) is tuple:
        items = text.strip().strip("[]()").split(",")
        return tuple(read_value(get_args(kind)[0], item.strip()) for item in items if item.strip())
    read, allowed = _READERS[kind]
    try:
        return read(text)
    except ValueError:
        raise ValueError(f"{allowed} is needed") from None


def read_toml_value(kind: Any, value: Any) -> Any:
    """The same for a value of a TOML file, which has types of its own. Raises ValueError as `read_value` does."""
    plain, _ = without_none(kind)
    if isinstance(value, str) and not (plain in (str, Path) or get_origin(plain) is Literal):
        raise ValueError(f"{describe(kind)} is needed, without quotation marks")
    if isinstance(value, list) and get_origin(plain) is not tuple:
        raise ValueError(f"{describe(kind)} is needed, not a list")
    if plain is str and not isinstance(value, str):
        raise ValueError("text in quotation marks is needed")
    return read_value(kind, show_value(value))


def show_value(value: Any) -> str:
    """As a user types it: true, 1,2,2."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(show_value(item) for item in value)
    return str(value)


def describe(kind: Any) -> str:
    """What a value of this type is, for people."""
    plain, _ = without_none(kind)
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(choices_of(plain))
    if get_origin(plain) is tuple:
        return "a list such as 1,2"
    return _READERS[plain][1]


def placeholder(kind: Any) -> str:
    """What stands for the value in a line of help."""
    plain, _ = without_none(kind)
    if choices := choices_of(plain):
        return "{" + ",".join(choices) + "}"
    if get_origin(plain) is tuple:
        return "N,N,..."
    return {int: "N", float: "X", Path: "PATH"}.get(plain, "TEXT")


def choices_of(kind: Any) -> Sequence[str]:
    """All texts that a Literal or bool allows; empty for other types."""
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return ["true", "false"] if kind is bool else []


def without_none(kind: Any) -> tuple[Any, bool]:
    """(X, True) for X | None, (kind, False) for any other type."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    others = [argument for argument in get_args(kind) if argument is not types.NoneType]
    assert len(others) == 1, f"{kind}: only X | None is supported"
    return others[0], True


def _read_choice(kind: Any, text: str) -> Any:
    choices = dict(zip(choices_of(kind), get_args(kind), strict=True))
    if text not in choices:
        raise ValueError(f"choose one of {', '.join(choices)}{did_you_mean(text, choices)}")
    return choices[text]


def _read_bool(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise ValueError
    return _WORDS[text.lower()]


_READERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (_read_bool, "true or false"),
    str: (str, "text"),
    Path: (Path, "a path"),
}
