"""Faults of a run as a whole: its launching process, its lease, its data, its clock, its shards' server."""

import functools
import http.server
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.lease import try_lease
from cluster.storage import complete_directories
from cluster.tracking.spool import read_metrics
from tests.support.failures.faults import TINY, Ended, Running, assert_same_run, checkpoint_names, run, wait_for
from tests.support.trainer import digits, losses
from trainer.run import LEASE_STALE_SECONDS

pytestmark = pytest.mark.heavy

STEPS = 8
PACED = {"RAYDDPM_FAULT": "step.before:again:delay=1"}


@pytest.fixture(scope="module")
def unbroken(data: Path, storage: Path) -> Path:
    assert train(data, storage, "unbroken").code == 0
    return storage / "unbroken"


def arguments_for(data: Path | str, storage: Path, name: str) -> list[str]:
    return [*TINY, "--data.path", str(data), "--run.storage", str(storage), "--run.name", name]


def train(data: Path | str, storage: Path, name: str, *arguments: str, **environment: str) -> Ended:
    return run(storage / "logs", *arguments_for(data, storage, name), *arguments, **environment)


@contextmanager
def paced(data: Path, storage: Path, name: str) -> Iterator[Running]:
    """A run whose steps take a second, and may sleep for minutes, once it has the checkpoint of step 2."""
    arguments = [*arguments_for(data, storage, name), "--workers.step_timeout_seconds", "600"]
    with Running(storage / "logs", arguments, PACED) as running:
        wait_for(lambda: checkpoint_names(storage / name) == ["step-00000002"])
        yield running


def test_the_death_of_the_launching_process_costs_no_sample(data: Path, storage: Path, unbroken: Path) -> None:
    with paced(data, storage, "driver") as running:
        running.send(signal.SIGKILL)
        assert running.wait().code == -signal.SIGKILL
    resumed = train(data, storage, "driver")
    assert resumed.code == 0, resumed.output
    assert "training from step 0 " not in resumed.output
    assert_same_run(storage / "driver", unbroken, data, STEPS)


def test_who_lost_the_lease_while_it_slept_writes_nothing_more(data: Path, storage: Path, unbroken: Path) -> None:
    with paced(data, storage, "lease") as sleeper:
        directory = storage / "lease"
        sleeper.send(signal.SIGSTOP)
        refused = train(data, storage, "lease")
        assert refused.code == 2
        assert "is being trained by another process" in refused.output
        lease = directory / "lease.json"
        heartbeat = lease.stat().st_mtime
        os.utime(lease, (heartbeat, heartbeat - 2 * LEASE_STALE_SECONDS))
        successor = train(data, storage, "lease")
        assert successor.code == 0, successor.output
        before = [path.name for path in complete_directories(directory / "checkpoints")]
        spool = (directory / "spool" / "train.jsonl").read_bytes()
        sleeper.send(signal.SIGCONT)
        ended = sleeper.wait()
    assert ended.code == 1
    assert "lease.json was taken over by another process" in ended.output
    assert [path.name for path in complete_directories(directory / "checkpoints")] == before
    assert (directory / "spool" / "train.jsonl").read_bytes() == spool
    assert_same_run(directory, unbroken, data, STEPS)


def test_data_packed_anew_at_the_same_place_are_refused_with_both_digests(tmp_path: Path) -> None:
    data = digits(tmp_path / "data")
    first = train(data, tmp_path, "run", "--train.num_steps", "2")
    assert first.code == 0, first.output
    digest = json.loads((data / "manifest.json").read_text())
    for path in data.iterdir():
        path.unlink()
    digits(data, num_images=39)
    assert json.loads((data / "manifest.json").read_text()) != digest
    refused = train(data, tmp_path, "run")
    assert refused.code == 2
    was = json.loads((tmp_path / "run" / "run.json").read_text())["manifest_digest"]
    assert f"data.digest was '{was}', is '" in refused.output
    assert checkpoint_names(tmp_path / "run") == ["step-00000002"]


def jumping_clock() -> None:
    """The clock is eleven days ahead, and is put back by two hours five times a second."""
    real, started = time.time, time.monotonic()
    time.time = lambda: real() + 1e6 - 7200 * int(5 * (time.monotonic() - started))


def test_a_jumping_clock_changes_neither_saves_nor_samples(data: Path, storage: Path, unbroken: Path) -> None:
    with Running(storage / "logs", arguments_for(data, storage, "clock"), PACED, prepare=jumping_clock) as jumping:
        ended = jumping.wait()
    assert ended.code == 0, ended.output
    directory = storage / "clock"
    times = [seconds for _, _, seconds in read_metrics(directory)["train/loss"]]
    assert min(b - a for a, b in itertools.pairwise(times)) < -3600
    assert checkpoint_names(directory) == ["step-00000002", "step-00000004", "step-00000006", "step-00000008"]
    assert_same_run(directory, unbroken, data, STEPS)


def test_a_clock_that_jumps_costs_nobody_a_held_lease(tmp_path: Path) -> None:
    """Its owner lives, and the clock says that it has not been heard of for an hour, or will be in one."""
    path = tmp_path / "lease.json"
    lease = try_lease(path, LEASE_STALE_SECONDS / 5)
    assert lease is not None
    with lease:
        for jump in (-3600, 3600):
            heartbeat = path.stat().st_mtime
            os.utime(path, (heartbeat, heartbeat + jump))
            assert try_lease(path, LEASE_STALE_SECONDS / 5) is None


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(data))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_fetch_that_fails_or_dies_costs_no_sample(
    server: str, data: Path, storage: Path, unbroken: Path, moment: str, tmp_path: Path
) -> None:
    environment = {"RAYDDPM_CACHE": str(tmp_path / "cache")}
    name = f"fetch-{moment}"
    faults = f"fetch.{moment}:raise,fetch.{moment}:kill"
    killed = train(server, storage, name, RAYDDPM_FAULT=faults, **environment)
    assert killed.code == -signal.SIGKILL, killed.output
    resumed = train(server, storage, name, RAYDDPM_FAULT=faults.replace("kill", "delay=0.1"), **environment)
    assert resumed.code == 0, resumed.output
    assert_same_run(storage / name, unbroken, data, STEPS)
    assert losses(storage / name) == losses(unbroken)
