"""Cron expressions, read as a crontab reads them."""

import pytest

from eval.service.schedule import cron_trigger, ticking


def test_cron_expressions_are_read_and_wrong_ones_refused():
    from datetime import UTC, datetime

    start = datetime(2026, 1, 1, 5, 0, tzinfo=UTC)
    fire = cron_trigger("30 6 * * *").get_next_fire_time(None, start)
    assert (fire.minute, fire.hour) == (30, 6)
    with ticking("0 0 1 1 *") as due:
        assert not due.is_set()
    for wrong in ("hourly", "61 * * * *", "* * * *"):
        with pytest.raises(ValueError, match="minute hour day month weekday"):
            cron_trigger(wrong)


@pytest.mark.parametrize(
    ("field", "days"),
    [
        ("0", "sun"),
        ("1", "mon"),
        ("7", "sun"),
        ("1-5", "mon tue wed thu fri"),
        ("5-7", "fri sat sun"),
        ("0,3", "wed sun"),
        ("*/2", "tue thu sat sun"),
        ("1-5/2", "mon wed fri"),
        ("mon,fri", "mon fri"),
        ("*", "mon tue wed thu fri sat sun"),
    ],
)
def test_weekdays_are_those_of_a_crontab(field, days):
    from datetime import datetime, timedelta

    trigger = cron_trigger(f"0 6 * * {field}")
    midnights = [(datetime(2026, 1, 5) + timedelta(days=day)).astimezone() for day in range(7)]  # from a Monday on
    fires = [trigger.get_next_fire_time(None, midnight).date() == midnight.date() for midnight in midnights]
    names = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    assert [name for name, fired in zip(names, fires, strict=True) if fired] == days.split()


@pytest.mark.parametrize("field", ["8", "5-1", "1/0", "x"])
def test_what_is_no_weekday_is_refused(field):
    with pytest.raises(ValueError, match="minute hour day month weekday"):
        cron_trigger(f"0 6 * * {field}")
