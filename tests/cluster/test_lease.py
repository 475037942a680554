"""Leases keep two workers apart and outlive neither: taken over when stale, at once when the owner is known dead."""

import json
import multiprocessing
import os
import threading
import time

import pytest

from cluster.lease import Lease, LostLeaseError, try_lease
from common.files import write_json_atomic


def test_a_lease_is_held_by_one_and_free_after(tmp_path):
    path = tmp_path / "x.lease"
    lease = try_lease(path)
    assert lease.attempt == 1
    assert try_lease(path) is None
    lease.release()
    assert try_lease(path).attempt == 1


def test_a_lease_whose_heartbeat_is_old_is_taken_over_and_its_owner_told(tmp_path):
    path = tmp_path / "x.lease"
    first = try_lease(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"heartbeat": time.time() - 100, "machine": "elsewhere"}))
    assert try_lease(path, stale_seconds=200) is None
    second = try_lease(path, stale_seconds=0.6)
    assert second.attempt == 2
    with pytest.raises(LostLeaseError):
        first.check()
    with pytest.raises(LostLeaseError):
        first.renew()
    first.release()
    second.check()


def hold_forever(path, ready):
    assert try_lease(path) is not None
    ready.set()
    time.sleep(600)


def test_a_killed_evaluators_lease_is_free_at_once_on_its_machine(tmp_path):
    path = tmp_path / "x.lease"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold_forever, args=(path, ready))
    process.start()
    assert ready.wait(60)
    assert try_lease(path) is None
    process.kill()
    process.join()
    assert try_lease(path).attempt == 2


def test_a_held_lease_is_renewed_while_its_owner_works(tmp_path):
    path = tmp_path / "x.lease"
    with try_lease(path, stale_seconds=0.3) as lease:
        first = json.loads(path.read_text())["heartbeat"]
        deadline = time.monotonic() + 300
        while json.loads(path.read_text())["heartbeat"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(path.read_text())["heartbeat"] > first
        assert isinstance(lease, Lease)
    assert not path.exists()


@pytest.mark.parametrize("jump_seconds", [-3600, 3600])
@pytest.mark.parametrize("machine", [{}, {"machine": "elsewhere"}], ids=["here", "elsewhere"])
def test_a_clock_that_jumps_takes_no_lease_from_a_living_owner(tmp_path, monkeypatch, jump_seconds, machine):
    """The owner, on this machine or another, renews its lease by the clock that it has."""
    path, clock = tmp_path / "x.lease", time.time
    lease = try_lease(path, stale_seconds=6.0)
    content = json.loads(path.read_text())

    def renew() -> None:
        while not stop.wait(0.05):
            write_json_atomic(path, content | machine | {"heartbeat": clock()})

    stop, owner = threading.Event(), threading.Thread(target=renew)
    owner.start()
    monkeypatch.setattr(time, "time", lambda: clock() + jump_seconds)
    assert try_lease(path, stale_seconds=6.0) is None
    stop.set()
    owner.join()
    lease.check()


def race(path, start, wins):
    start.wait(60)
    if try_lease(path, stale_seconds=3.0) is not None:
        wins.put(os.getpid())
        time.sleep(2)


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_evaluators_one_gets_the_lease(tmp_path, stale):
    path = tmp_path / "x.lease"
    if stale:
        path.write_text(json.dumps({"token": "old", "heartbeat": 0.0, "machine": "elsewhere", "pid": 1, "attempt": 1}))
    context = multiprocessing.get_context("fork")
    start, wins = context.Event(), context.Queue()
    processes = [context.Process(target=race, args=(path, start, wins)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert wins.qsize() == 1
