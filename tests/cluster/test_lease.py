"""Leases keep two workers apart and outlive neither: taken over when stale, at once when the owner is known dead."""

import errno
import json
import multiprocessing
import os
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from cluster import lease_file
from cluster.lease import Lease, LostLeaseError, is_held, try_lease
from common.files import write_json_atomic
from tests.support.failures.stalls import failing_to_open, in_child

STALE = 0.3


def taken(path: Path, stale_seconds: float = STALE) -> Lease:
    """The lease, which must be free."""
    lease = try_lease(path, stale_seconds)
    assert lease is not None
    return lease


def holds(lease: Lease) -> bool:
    try:
        lease.check()
    except LostLeaseError:
        return False
    return True


def let_seconds_pass(path: Path, seconds: float) -> None:
    """As if the heartbeat had been so long ago."""
    now = time.time()
    os.utime(path, (now, now - seconds))


def edit(path: Path, **fields: Any) -> None:
    """Change what the lease says of its owner, and nothing else."""
    status, content = path.stat(), json.loads(path.read_text())
    path.write_text(json.dumps(content | fields))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_lease_is_held_by_one_and_free_after(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    lease = taken(path, 90)
    assert lease.attempt == 1
    assert is_held(path)
    assert try_lease(path) is None
    lease.release()
    assert not is_held(path)
    assert taken(path).attempt == 1


def test_a_lease_whose_heartbeat_is_old_is_taken_over_and_its_owner_told(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    first = taken(path)
    edit(path, machine="elsewhere")
    let_seconds_pass(path, 100)
    assert try_lease(path, stale_seconds=200) is None
    assert is_held(path, stale_seconds=200)
    assert not is_held(path)
    second = taken(path, stale_seconds=0.6)
    assert second.attempt == 2
    with pytest.raises(LostLeaseError):
        first.check()
    with pytest.raises(LostLeaseError):
        first.renew()
    first.release()
    second.check()


def hold_forever(path: Path, ready: Event) -> None:
    taken(path, 90)
    ready.set()
    time.sleep(600)


def test_a_killed_evaluators_lease_is_free_at_once_on_its_machine(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold_forever, args=(path, ready))
    process.start()
    assert ready.wait(60)
    assert try_lease(path) is None
    process.kill()
    process.join()
    assert not is_held(path)
    assert taken(path).attempt == 2


def test_a_process_with_the_number_of_a_dead_owner_is_not_that_owner(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    taken(path, 90)
    edit(path, start_ticks=json.loads(path.read_text())["start_ticks"] - 1)
    assert not is_held(path)
    assert taken(path).attempt == 2


@pytest.mark.parametrize("differs", ["boot", "namespace"])
def test_a_host_of_the_same_name_takes_nothing_from_a_living_owner(tmp_path: Path, differs: str) -> None:
    """On shared storage, where the owner's process number means nothing here, or names another process."""
    path = tmp_path / "x.lease"
    with taken(path, 90):
        content = json.loads(path.read_text())
        host, boot, namespace = content["machine"].split("/")
        other = f"{host}/{boot[::-1]}/{namespace}" if differs == "boot" else f"{host}/{boot}/pid:[1]"
        edit(path, machine=other, pid=2**22 + 1)
        assert is_held(path)
        assert try_lease(path) is None


def test_a_held_lease_is_renewed_while_its_owner_works(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"
    with taken(path, stale_seconds=0.3) as lease:
        first = path.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while path.stat().st_mtime_ns == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime_ns > first
        assert isinstance(lease, Lease)
    assert not path.exists()


@pytest.mark.parametrize("jump_seconds", [-3600, 3600])
@pytest.mark.parametrize("machine", [{}, {"machine": "elsewhere"}], ids=["here", "elsewhere"])
def test_a_storages_clock_that_jumps_takes_no_lease_from_a_living_owner(
    tmp_path: Path, jump_seconds: int, machine: dict[str, str]
) -> None:
    """The owner, on this machine or another, goes on renewing it."""
    path = tmp_path / "x.lease"
    lease = taken(path, stale_seconds=6.0)
    edit(path, **machine)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(0.05):
            let_seconds_pass(path, jump_seconds)

    owner = threading.Thread(target=renew)
    let_seconds_pass(path, jump_seconds)
    owner.start()
    assert try_lease(path, stale_seconds=6.0) is None
    stop.set()
    owner.join()
    lease.check()


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_machine_whose_clock_is_wrong_sees_who_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    """Retention and the page ask `is_held`, on any machine; the storage's clock alone says how old a heartbeat is."""
    path, clock = tmp_path / "x.lease", time.time
    lease = taken(path, 90)
    edit(path, machine="elsewhere")
    monkeypatch.setattr(time, "time", lambda: clock() + seconds)
    assert is_held(path)
    lease.renew()
    assert is_held(path)
    let_seconds_pass(path, seconds + 100)
    assert not is_held(path)


def test_a_folder_that_one_may_not_write_to_shows_who_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.lease"
    taken(path, 90)
    edit(path, machine="elsewhere")

    def refuse(**_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(lease_file.tempfile, "TemporaryFile", refuse)  # root may write everywhere
    assert is_held(path)
    let_seconds_pass(path, 100)
    assert not is_held(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"[]",
        b"3",
        b"{}",
        b'{"token": 3, "attempt": "x", "machine": [], "pid": "x"}',
        b'{"token": null, "attempt": null, "machine": null, "pid": null}',
        b'{"token": "t", "attempt": 1, "heartbeat": "soon", "machine": "host/pid:[4026531836]", "pid": 1}',
    ],
)
@pytest.mark.parametrize("pid", [None, -1, 0, 10**30])
def test_a_lease_that_says_nothing_sensible_is_held_while_its_file_is_young(
    tmp_path: Path, content: bytes, pid: int | None
) -> None:
    """One that is just being created is empty."""
    path = tmp_path / "x.lease"
    path.write_bytes(content)
    if pid is not None and content == b"{}":
        taken(tmp_path / "other.lease", 90)
        machine = json.loads((tmp_path / "other.lease").read_text())["machine"]
        path.write_text(json.dumps({"machine": machine, "pid": pid}))
    assert is_held(path)
    assert try_lease(path) is None
    let_seconds_pass(path, 100)
    assert not is_held(path)
    taken(path).check()


def test_a_lease_of_an_earlier_version_is_believed(tmp_path: Path) -> None:
    """It was replaced at every heartbeat, and said there when that was."""
    path = tmp_path / "x.lease"
    content = {"token": "old", "attempt": 2, "heartbeat": 1.0, "machine": "host/pid:[4026531836]", "pid": 1}
    write_json_atomic(path, content)
    assert is_held(path)
    assert try_lease(path) is None
    let_seconds_pass(path, 100)
    assert taken(path).attempt == 3


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_a_storage_that_is_away_for_a_moment_costs_nobody_a_lease(tmp_path: Path, number: int) -> None:
    path = tmp_path / "x.lease"

    def look_when_it_cannot_be_read() -> bool:
        lease = taken(path, stale_seconds=6.0)
        failing_to_open(path, number, times=3)
        assert is_held(path)
        lease.check()
        lease.release()
        return not path.exists()

    assert in_child(look_when_it_cannot_be_read)


def test_a_storage_that_stays_away_is_an_error_after_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.lease"

    def look_when_it_cannot_be_read() -> bool:
        lease = taken(path, stale_seconds=0.2)
        failing_to_open(path, errno.EIO, times=1000)
        with pytest.raises(OSError, match="Input/output error"):
            lease.check()
        lease.release()  # only warns
        return True

    assert in_child(look_when_it_cannot_be_read)
