"""What a number or a name may be, refused in one sentence: `NAME is VALUE: it must be ALLOWED; HINT`."""

import difflib
import math
from collections.abc import Iterable


def check(holds: bool, name: str, value: object, allowed: str, hint: str = "") -> None:
    """Raise ValueError unless it holds, in the one sentence that every refusal of a setting has."""
    if not holds:
        raise ValueError(f"{name} is {value!r}: it must be {allowed}{hint and '; ' + hint}")


def check_whole(name: str, value: object, least: int, most: int | None = None, hint: str = "") -> None:
    """Raise ValueError unless the value is an int (no bool, no float) in [least, most]."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    holds = is_whole and least <= value and (most is None or value <= most)  # type: ignore[operator]
    allowed = f"at least {least}" if most is None else f"in [{least}, {most}]"
    check(holds, name, value, allowed if is_whole else f"a whole number, {allowed}", hint)


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    hint: str = "",
) -> None:
    """Raise ValueError unless the value is a finite int or float (no bool) within the bounds given.

    least and most belong to the range, above and below do not.
    """
    allowed = _range(least, above, most, below)
    if isinstance(value, bool) or not isinstance(value, int | float):
        check(False, name, value, f"a number{allowed and ' ' + allowed}", hint)
        return
    # NaN compares false with everything, so that it passes no check that is written as what must hold.
    bounds = (
        least is None or value >= least,
        above is None or value > above,
        most is None or value <= most,
        below is None or value < below,
    )
    finite = -math.inf < value < math.inf
    unbounded = " and finite" if not finite and all(bounds) else ""
    check(finite and all(bounds), name, value, allowed + unbounded if allowed else "a finite number", hint)


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ValueError unless the value is one of the names; says which of them it resembles."""
    names = list(allowed)
    if value not in names:  # what it resembles takes long to find
        near = did_you_mean(value, names) if isinstance(value, str) else ""
        check(False, name, value, f"one of {', '.join(names)}{near}")


def check_at_least(section: str, config: object, least: int, *names: str) -> None:
    """The fields `names` of a config's section are finite numbers from `least` on. Raises ValueError."""
    for name in names:
        check_number(f"{section}.{name}", getattr(config, name), least=least)


def check_above_zero(section: str, config: object, *names: str) -> None:
    """The fields `names` of a config's section are finite and positive. Raises ValueError."""
    for name in names:
        check_number(f"{section}.{name}", getattr(config, name), above=0)


def check_fraction(section: str, config: object, *names: str) -> None:
    """The fields `names` of a config's section are in [0, 1). Raises ValueError."""
    for name in names:
        check_number(f"{section}.{name}", getattr(config, name), least=0, below=1)


def _range(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    """The bounds as a reader expects them: at least 1, above 0, in [0, 1), or nothing without bounds."""
    low, high = (above if least is None else least), (below if most is None else most)
    if low is not None and high is not None:
        return f"in {'(' if least is None else '['}{low:g}, {high:g}{')' if most is None else ']'}"
    if low is not None:
        return f"{'above' if least is None else 'at least'} {low:g}"
    return "" if high is None else f"{'below' if most is None else 'at most'} {high:g}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with the nearest of what is known, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
