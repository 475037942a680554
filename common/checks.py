"""What numbers of a config may be; each check is a ValueError of one line: the value, and what is allowed."""

import math
from collections.abc import Callable


def check_at_least(section: str, config: object, least: int, *names: str) -> None:
    """The fields `names` of `config` are finite numbers from `least` on."""
    _check(section, config, names, lambda value: least <= value < math.inf, f"at least {least}")


def check_above_zero(section: str, config: object, *names: str) -> None:
    """The fields `names` of `config` are finite and positive."""
    _check(section, config, names, lambda value: 0 < value < math.inf, "above 0")


def check_fraction(section: str, config: object, *names: str) -> None:
    """The fields `names` of `config` are in [0, 1)."""
    _check(section, config, names, lambda value: 0 <= value < 1, "in [0, 1)")


def _check(section: str, config: object, names: tuple[str, ...], holds: Callable[[float], bool], allowed: str) -> None:
    # NaN compares false with everything, so that it passes no check that is written as what must hold.
    for name in names:
        value = getattr(config, name)
        if not holds(value):
            finite = ", and finite" if value == math.inf else ""
            raise ValueError(f"{section}.{name} {value} must be {allowed}{finite}")
