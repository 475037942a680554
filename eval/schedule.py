"""Cron expressions: when a schedule is due, by APScheduler's clock."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger


def cron_trigger(expression: str) -> CronTrigger:
    """minute hour day month weekday, local time. Raises ValueError saying what is wrong with it."""
    try:
        return CronTrigger.from_crontab(expression)
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
