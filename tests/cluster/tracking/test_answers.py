"""MLflow that answers badly, and an uploader that is killed at every moment: each point arrives, and once."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from werkzeug.wrappers import Request

from cluster.tracking.background import BackgroundUploader
from cluster.tracking.spool import Spool, read_metrics
from cluster.tracking.uploader import Uploader, UploadError, default_tracking_uri
from tests.support.servers.mlflow_server import GARBAGE, mlflow_server
from tests.support.tracking import describe

NUM_REQUESTS = 9
"""Different ones, at the least, that send an event of each kind to an MLflow that is new."""


def say_all_there_is_to_say(directory: Path) -> None:
    """An event of each kind, from two writers."""
    (directory / "grid.txt").write_text("grid")
    spool = Spool(directory, "train")
    spool.params({"optim.learning_rate": 2e-4})
    for step in (10, 20, 30):
        spool.metrics({"train/loss": 1 / step, "train/grad_norm": step}, step)
    spool.close()
    spool = Spool(directory, "run")
    spool.tags({"world_size": 2})
    spool.artifact(directory / "grid.txt")
    spool.status("FINISHED")
    spool.close()


def assert_all_is_there_once(directory: Path) -> None:
    """As MLflow's database has it, in the only run of the only experiment of the name."""
    assert not Uploader(directory).pending()
    client = MlflowClient(default_tracking_uri(directory.parent))
    (experiment,) = client.search_experiments(filter_string="name = 'tests'")
    (run,) = client.search_runs([experiment.experiment_id])
    spooled = read_metrics(directory)
    assert set(run.data.metrics) == set(spooled) == {"train/loss", "train/grad_norm"}
    for name, points in spooled.items():
        sent = client.get_metric_history(run.info.run_id, name)
        assert sorted((m.step, m.value, m.timestamp) for m in sent) == [(s, v, int(t * 1000)) for s, v, t in points]
    assert run.data.params == {"optim.learning_rate": "0.0002"}
    assert run.data.tags["world_size"] == "2"
    assert run.info.status == "FINISHED"
    assert [found.path for found in client.list_artifacts(run.info.run_id)] == ["grid.txt"]


class Firsts:
    """True for each request that was not seen before."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, bytes]] = set()

    def __call__(self, request: Request) -> bool:
        # When a run was created is in its request, and another each time.
        key = (request.full_path, b"" if request.path.endswith("/create") else request.get_data())
        is_first = key not in self._seen
        self._seen.add(key)
        return is_first

    def __len__(self) -> int:
        return len(self._seen)


def cases() -> list[Any]:
    """Kinds by turns, and the 500 that MLflow's client would try again by itself; each other in `make test-all`."""
    alone = [(m, kind) for m in ("before", "after") for kind in GARBAGE if (m, kind) != ("after", "500")]
    return [
        pytest.param("before", list(GARBAGE), id="before-by-turns"),
        pytest.param("after", ["500"], id="after-500"),
        *(pytest.param(m, [kind], marks=pytest.mark.slow, id=f"{m}-{kind}") for m, kind in alone),
    ]


@pytest.mark.parametrize(("moment", "kinds"), cases())
def test_no_bad_answer_loses_or_doubles_a_point(run_directory: Path, moment: str, kinds: list[str]) -> None:
    """Each request is answered badly once: before MLflow has it, or after it has done what was asked for."""
    say_all_there_is_to_say(run_directory)
    is_first, kind = Firsts(), itertools.cycle(kinds)
    with mlflow_server(run_directory.parent) as server:
        describe(run_directory, server.uri)
        setattr(server, moment, lambda request: GARBAGE[next(kind)] if is_first(request) else None)
        uploader = Uploader(run_directory)
        failures = 0
        while uploader.pending() and failures < 100:
            try:
                uploader.drain()
            except UploadError:
                failures += 1
        assert len(is_first) >= NUM_REQUESTS
        assert failures > 0
        assert_all_is_there_once(run_directory)


def test_training_writes_on_while_mlflow_holds_an_answer_back(run_directory: Path) -> None:
    asked, released = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        asked.set()
        assert released.wait(60)

    spool = Spool(run_directory, "train")
    spool.metrics({"train/loss": 1.0}, 1)
    with mlflow_server(run_directory.parent) as server:
        describe(run_directory, server.uri)
        server.before = hold
        with BackgroundUploader(run_directory, every_seconds=0.01):
            assert asked.wait(60)
            for step in range(2, 101):
                spool.metrics({"train/loss": 1 / step}, step)
            assert [step for step, _, _ in read_metrics(run_directory)["train/loss"]] == list(range(1, 101))
            assert not released.is_set()
            released.set()
        assert not Uploader(run_directory).pending()


def ended(directory: Path, prepare: Callable[[], object] = lambda: None) -> int:
    """The exit code of a process that sends the spool; `prepare` is called in it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prepare()
            Uploader(directory).drain()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_uploader_killed_at_any_request_repeats_no_point(run_directory: Path, moment: str) -> None:
    """Each request kills its sender once: before MLflow has it, or after it has done what was asked for."""
    say_all_there_is_to_say(run_directory)
    is_first, kills = Firsts(), 0
    with mlflow_server(run_directory.parent) as server:
        describe(run_directory, server.uri)
        setattr(server, moment, lambda request: kill_sender(request) if is_first(request) else None)
        while (code := ended(run_directory)) != 0:
            assert code == -signal.SIGKILL
            kills += 1
        assert kills == len(is_first) >= NUM_REQUESTS
        assert_all_is_there_once(run_directory)


def kill_sender(request: Request) -> None:
    """The process at the other end of the connection, which waits for the answer."""
    port = int(request.environ["REMOTE_PORT"])
    (sender,) = (found for found in psutil.Process().children() if connects_from(found, port))
    sender.kill()


def connects_from(process: psutil.Process, port: int) -> bool:
    return any(connection.laddr.port == port for connection in process.net_connections("tcp"))


def test_an_uploader_killed_at_any_change_of_its_files_repeats_no_point(run_directory: Path) -> None:
    """Before it remembers the MLflow run, before it notes what MLflow has, and before each of them has its name."""
    say_all_there_is_to_say(run_directory)
    with mlflow_server(run_directory.parent) as server:
        describe(run_directory, server.uri)
        kills = 0
        while (code := ended(run_directory, partial(kill_at_change, kills + 1))) != 0:
            assert code == -signal.SIGKILL
            kills += 1
        assert kills >= 3
        assert_all_is_there_once(run_directory)


def kill_at_change(number: int) -> None:
    """This process ends at its change of that number, from 1, in the folder of the spool."""
    seen = itertools.count(1)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_change = event in ("os.rename", "os.remove") or (event == "open" and ".tmp-" in str(arguments[0]))
        if is_change and "spool" in str(arguments[0]) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
