"""Leases when processes stall between system calls, or race: nobody loses one that is theirs."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from cluster import lease_file
from cluster.lease import LostLeaseError, try_lease
from tests.cluster.test_lease import STALE, edit, holds, let_seconds_pass, taken
from tests.support.failures.stalls import stalled_at_every_call


class Owned:
    """A lease that this process holds, and a child inherits; its heartbeat is old once the child is stopped."""

    def __init__(self, path: Path):
        self.path = path
        self.lease = taken(path)

    def again(self) -> None:
        for leftover in self.path.parent.iterdir():
            leftover.unlink()
        self.lease = taken(self.path)
        edit(self.path, machine="elsewhere")
        let_seconds_pass(self.path, 100)


def test_an_owner_that_stalls_in_a_heartbeat_leaves_its_successors_lease_alone(tmp_path: Path) -> None:
    """Wherever it is stopped, between its look at the file and the heartbeat above all."""
    owned = Owned(tmp_path / "x.lease")

    def renew() -> bool:
        with contextlib.suppress(LostLeaseError):
            owned.lease.renew()
        return True

    stalls = 0
    for owner in stalled_at_every_call(renew, owned.again):
        let_seconds_pass(owned.path, 100)
        successor = taken(owned.path)
        assert owner.go_on()
        successor.check()
        successor.renew()
        assert not holds(owned.lease)
        stalls += 1
    assert stalls >= 2


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("action", ["release", "take"])
def test_a_process_that_stalls_in_giving_up_or_taking_a_lease_takes_none_from_its_new_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Whoever was given the lease while another was stopped anywhere in the middle still has it in the end."""
    monkeypatch.setattr(lease_file, "_LOCK_SECONDS", 0.05)
    owned = Owned(tmp_path / "x.lease")

    def release() -> bool:
        owned.lease.release()
        return False

    def take() -> bool:
        return try_lease(owned.path, STALE) is not None

    act: Callable[[], bool] = release if action == "release" else take
    outcomes = set()
    for stalled in stalled_at_every_call(act, owned.again):
        other = try_lease(owned.path, STALE)
        got = stalled.go_on()
        assert not (got and other)
        if other:
            other.check()
        outcomes.add((got, other is not None))
        if not got and not other:  # it held the lock, and has removed the file
            taken(owned.path)
        assert [path.name for path in tmp_path.iterdir()] == [owned.path.name]
    assert (False, True) in outcomes
    assert len(outcomes) == 2


def test_where_there_are_no_locks_one_of_two_takers_holds_the_lease_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems may be mounted without."""
    without_locks(monkeypatch)
    owned = Owned(tmp_path / "x.lease")
    for stalled in stalled_at_every_call(lambda: try_lease(owned.path, STALE) is not None, owned.again):
        other = try_lease(owned.path, STALE)
        got = stalled.go_on()
        assert got + (other is not None and holds(other)) <= 1
        assert [path.name for path in tmp_path.iterdir()] == [owned.path.name]


def race(path: Path, start: Event, wins: "Queue[int]") -> None:
    start.wait(60)
    if try_lease(path, stale_seconds=3.0) is not None:
        wins.put(os.getpid())
        time.sleep(2)


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_evaluators_one_gets_the_lease(tmp_path: Path, stale: bool) -> None:
    path = tmp_path / "x.lease"
    if stale:
        path.write_text(json.dumps({"token": "old", "machine": "elsewhere", "pid": 1, "attempt": 1}))
        let_seconds_pass(path, 100)
    context = multiprocessing.get_context("fork")
    start, wins = context.Event(), context.Queue()
    processes = [context.Process(target=race, args=(path, start, wins)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert wins.qsize() == 1
