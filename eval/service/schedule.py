"""Cron expressions: when a schedule is due, by APScheduler's clock."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def _weekday_names(field: str) -> str:
    """A crontab's weekdays with numbers as names: there 0 and 7 are Sunday, for APScheduler 0 is Monday.

    Raises ValueError for what is not a weekday.
    """
    named = []
    for part in field.split(","):
        match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?", part)
        if match is None or part == "*":
            named.append(part)  # names, which both understand
            continue
        first, last, stride = (None if group is None else int(group) for group in match.groups())
        if first is None:
            first, last = 0, 6
        elif last is None:
            last = first if stride is None else 7
        days = range(first, last + 1, stride or 1) if stride != 0 else range(0)
        if not days or last > 7:
            raise ValueError(f"weekday {part!r}: allowed are 0 to 7 (0 and 7 are Sunday) and mon to sun")
        named += [_WEEKDAYS[day % 7] for day in days]
    return ",".join(named)


def cron_trigger(expression: str) -> CronTrigger:
    """minute hour day month weekday, local time. Raises ValueError saying what is wrong with it."""
    try:
        *fields, weekdays = expression.split() or [""]
        return CronTrigger.from_crontab(" ".join([*fields, _weekday_names(weekdays)]))
    except ValueError as error:
        raise ValueError(
            f"schedule {expression!r}: {error}; write minute hour day month weekday, such as '0 6 * * *'"
        ) from error


@contextmanager
def ticking(expression: str) -> Iterator[threading.Event]:
    """An event that is set whenever the expression is due; whoever acts on it clears it."""
    due = threading.Event()
    scheduler = BackgroundScheduler()
    # A time missed while the machine slept is made up for once, not once for each.
    scheduler.add_job(due.set, cron_trigger(expression), coalesce=True, misfire_grace_time=None)
    scheduler.start()
    try:
        yield due
    finally:
        scheduler.shutdown(wait=False)
