"""One sentence for every refused setting, and no value that slips through because of its type."""

import math
from dataclasses import dataclass

import pytest

from common.checks import check_above_zero, check_at_least, check_choice, check_fraction, check_number, check_whole


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0, {"least": 1}, "seed is 0: it must be at least 1"),
        (9, {"least": 1, "most": 8}, "seed is 9: it must be in [1, 8]"),
        (1.0, {"least": 1}, "seed is 1.0: it must be a whole number, at least 1"),
        (True, {"least": 1}, "seed is True: it must be a whole number, at least 1"),
        ("3", {"least": 1}, "seed is '3': it must be a whole number, at least 1"),
        (0, {"least": 1, "hint": "the paper uses 2"}, "seed is 0: it must be at least 1; the paper uses 2"),
    ],
)
def test_what_is_not_a_whole_number_in_range_is_refused(value, bounds, message):
    with pytest.raises(ValueError, match="seed") as caught:
        check_whole("seed", value, **bounds)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "bounds", "allowed"),
    [
        (0.0, {"above": 0}, "above 0"),
        (math.nan, {"above": 0}, "above 0"),
        (math.inf, {"above": 0}, "above 0 and finite"),
        (-math.inf, {"most": 3}, "at most 3 and finite"),
        (math.nan, {}, "a finite number"),
        (1.0, {"least": 0, "below": 1}, "in [0, 1)"),
        (0.0, {"above": 0, "below": 1}, "in (0, 1)"),
        (2, {"below": 2}, "below 2"),
        (True, {"least": 0}, "a number at least 0"),
        ("x", {}, "a number"),
        (None, {"least": 0, "most": 1}, "a number in [0, 1]"),
    ],
)
def test_what_is_not_a_finite_number_in_range_is_refused(value, bounds, allowed):
    with pytest.raises(ValueError, match="rate") as caught:
        check_number("rate", value, **bounds)
    assert str(caught.value) == f"rate is {value!r}: it must be {allowed}"


def test_values_at_a_closed_end_pass():
    check_whole("seed", 0, 0)
    check_whole("seed", 10**30, 0)
    check_whole("seed", 8, 1, 8)
    check_number("rate", 0, least=0, below=1)
    check_number("rate", 1.0, above=0, most=1)
    check_choice("order", "newest", ["newest", "oldest"])


def test_a_name_that_is_not_among_the_choices_is_refused_with_the_one_it_resembles():
    with pytest.raises(
        ValueError, match=r"^order is 'newst': it must be one of newest, oldest; did you mean newest\?$"
    ):
        check_choice("order", "newst", ["newest", "oldest"])
    with pytest.raises(ValueError, match=r"^order is \['newest'\]: it must be one of newest, oldest$"):
        check_choice("order", ["newest"], ["newest", "oldest"])


@dataclass
class Settings:
    rate: float = math.inf
    share: float = 1.0
    count: int = 0


def test_a_sections_fields_are_named_with_their_section():
    with pytest.raises(ValueError, match=r"^optim.rate is inf: it must be above 0 and finite$"):
        check_above_zero("optim", Settings(), "rate")
    with pytest.raises(ValueError, match=r"^optim.share is 1.0: it must be in \[0, 1\)$"):
        check_fraction("optim", Settings(), "share")
    with pytest.raises(ValueError, match=r"^optim.count is 0: it must be at least 1$"):
        check_at_least("optim", Settings(share=2.0), 1, "share", "count")
