"""`python -m cluster doctor` on this machine: as it is, and with one thing really broken at a time."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from cluster.commands import main
from common.code import ROOT, copied_packages
from tests.support.failures.disks import small_disk

Doctor = Callable[..., tuple[int, dict[str, str]]]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Exit code, and check -> its line, where no cluster is up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)

    def run(*options: object) -> tuple[int, dict[str, str]]:
        code = main(["doctor", *map(str, options)])
        return code, by_check(capsys.readouterr().out)

    return run


def by_check(output: str) -> dict[str, str]:
    return {line[4:].partition(":")[0]: line for line in output.splitlines()}


def faults(lines: dict[str, str]) -> set[str]:
    return {name for name, line in lines.items() if line.startswith("NO")}


@contextmanager
def health_page() -> Iterator[str]:
    """What MLflow's server answers to whoever asks for its health."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.needs("g++")
def test_a_healthy_machine_is_good_line_by_line_and_keeps_no_traces(doctor: Doctor, data: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    storage.mkdir()
    with health_page() as server:
        code, lines = doctor("--storage", storage, "--data", data, "--tracking-uri", server)
    room = {"free disk"} if shutil.disk_usage(storage).free < 10 * 2**30 else set()
    assert faults(lines) == room
    assert code == len(room)
    assert list(lines) == ["Ray", "versions", "GPUs", "compilers", "storage", "free disk", "data", "MLflow"]
    assert "cluster up starts one" in lines["Ray"]
    assert not list(storage.iterdir())


def test_storage_that_is_not_there(doctor: Doctor, tmp_path: Path) -> None:
    code, lines = doctor("--storage", tmp_path / "runs")
    assert code == 1
    assert faults(lines) == {"storage"}
    assert "No such file or directory: every node must write to one shared folder" in lines["storage"]
    assert not (tmp_path / "runs").exists()


def test_storage_on_which_nothing_can_be_written(tmp_path: Path) -> None:
    """The limit holds for files, not for pipes."""
    command = [sys.executable, "-m", "cluster", "doctor", "--storage", str(tmp_path)]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    lines = by_check(ended.stdout)
    assert (ended.returncode, faults(lines)) == (1, {"storage"}), ended.stderr
    assert "File too large" in lines["storage"]
    assert not list(tmp_path.glob(".doctor*"))


def test_a_full_disk(doctor: Doctor, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        code, lines = doctor("--storage", disk)
        assert (code, faults(lines)) == (1, {"free disk"})
        assert "0.0 GiB, less than 10" in lines["free disk"]
        (disk / "checkpoint").write_bytes(bytes(2**16))
        code, lines = doctor("--storage", disk)
        assert (code, faults(lines)) == (1, {"storage"})
        assert "No space left on device" in lines["storage"]


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), ("{", "Expecting"), ("{}", "digest")])
def test_data_without_a_manifest(doctor: Doctor, tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    code, lines = doctor("--data", tmp_path)
    assert (code, faults(lines)) == (1, {"data"})
    assert reason in lines["data"]
    assert "must be a packed data set that every node reads" in lines["data"]


def test_an_mlflow_that_does_not_answer_and_its_password(doctor: Doctor) -> None:
    code, lines = doctor("--tracking-uri", "http://user:hunter2@127.0.0.1:9")
    assert (code, faults(lines)) == (1, {"MLflow"})
    assert "Connection refused" in lines["MLflow"]
    assert "hunter2" not in "".join(lines.values())


def test_a_missing_compiler(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, lines = doctor()
    assert (code, faults(lines)) == (1, {"compilers"})
    assert "missing: g++ on" in lines["compilers"]


def test_a_gpu_that_is_missing(doctor: Doctor) -> None:
    import torch

    code, lines = doctor("--gpus")
    wanted = (0, set()) if torch.cuda.is_available() else (1, {"GPUs"})
    assert (code, faults(lines)) == wanted


def test_another_version_than_the_code_is_tested_with(tmp_path: Path) -> None:
    with copied_packages() as code:
        constraints = code / "constraints.txt"
        text = constraints.read_text()
        constraints.write_text("".join(f"{line}\n" for line in text.splitlines() if not line.startswith("ray==")))
        with open(constraints, "a") as file:
            file.write("ray==1.0.0\n")
        command = [sys.executable, "-m", "cluster", "doctor"]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        ended = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    lines = by_check(ended.stdout)
    assert (ended.returncode, faults(lines)) == (1, {"versions"})
    assert ", not 1.0.0: install with --constraint constraints.txt" in lines["versions"]


def test_no_cluster_where_one_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--address", "http://127.0.0.1:9"]) == 2
    assert "error: no job API at http://127.0.0.1:9" in capsys.readouterr().err
