"""`python -m eval serve` as its own Ray job beside a training job: it works, serves its page, ends when stopped."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from common.code import ROOT
from eval.results import all_results
from tests.support.clusters.cluster import Cluster
from tests.support.trainer import digits

pytestmark = [pytest.mark.heavy, pytest.mark.ray]

TRAINING = [
    *("--preset", "demo", "--workers.num_workers", "1", "--train.global_batch_size", "12"),
    *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
    *("--train.log_every_steps", "5", "--checkpoint.every_steps", "20", "--train.num_steps", "60"),
]
PROTOCOL = "fd_efficientnet_lite0_8_ddim2"
EVALUATION = ["--protocol", PROTOCOL, "--device", "cpu", "--num-threads", "1", "--num-bootstrap", "0"]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.2)


def health(port: int) -> int:
    """HTTP status of the page's /healthz; 0 if nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def evaluators(storage: Path) -> list[psutil.Process]:
    """Processes `python -m eval serve STORAGE`."""
    wanted = ["-m", "eval", "serve", str(storage)]
    return [process for process in psutil.process_iter(["cmdline"]) if (process.info["cmdline"] or [])[1:5] == wanted]


def test_the_evaluator_is_a_job_beside_the_training_and_stops_when_told_to(cluster: Cluster, tmp_path: Path) -> None:
    data, storage = digits(tmp_path / "data"), tmp_path / "runs"
    run = storage / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--data.path", str(data), "--run.storage", str(storage), "--run.name", "run"]
    cluster.submit("training", "python", "trainer/main.py", *TRAINING, *where)
    cluster.submit(
        "evaluation",
        *("python", "-m", "eval", "serve", str(storage), "--every-steps", "20", "--schedule", "* * * * *"),
        *(*EVALUATION, "--num-actors", "1", "--cpus-per-actor", "0.5", "--port", str(port)),
    )

    def steps() -> set[int]:
        assert "FAILED" not in (cluster.status("training"), cluster.status("evaluation"))
        return {result["step"] for result in all_results(run) if result["status"] == "done"}

    try:
        wait_for(lambda: steps() == {20, 40, 60}, "every checkpoint has its number")
        wait_for(lambda: health(port) == 200, "the page answers", 60)
        wait_for(lambda: list((run / "reports").glob("*.html")), "the schedule's report is there")
        assert cluster.status("training") == "SUCCEEDED"
        assert cluster.status("evaluation") == "RUNNING"
    except AssertionError:
        print(cluster.logs("evaluation"))
        raise
    assert evaluators(storage)
    cluster.stop("evaluation")
    assert cluster.status("evaluation") == "STOPPED"
    wait_for(lambda: not evaluators(storage), "the evaluator is gone", 30)
    assert "Traceback" not in cluster.logs("evaluation")
    assert not list(run.glob("evals/*/*.lease"))
    assert not list((storage / "evaluators").glob("*.json"))
    wait_for(lambda: health(port) == 0, "the page is gone", 60)
    once = subprocess.run(
        [sys.executable, "-m", "eval", "serve", str(storage), "--once", *EVALUATION],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert once.returncode == 0, once.stderr
    assert len(list(all_results(run))) == 3
    assert json.loads((run / "FINISHED.json").read_text())["step"] == 60
