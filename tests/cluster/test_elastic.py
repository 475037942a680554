"""A run on two nodes, one of which dies and comes back."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.tracking.spool import read_metrics
from common.code import ROOT
from data_pipeline.ledger import audit
from data_pipeline.storage.shards import open_dataset
from tests.support.clusters.cluster import Cluster
from tests.support.trainer import command, digits, losses
from trainer.hooks.stop import checkpoint_path

pytestmark = [pytest.mark.heavy, pytest.mark.ray]

TRAINING = [
    *("--preset", "demo", "--workers.num_workers", "2", "--workers.min_workers", "1"),
    *("--workers.resize_check_seconds", "3", "--train.global_batch_size", "12", "--data.ledger", "true"),
    *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
    *("--train.log_every_steps", "1", "--optim.learning_rate", "1e-4"),
]
NEVER = 1_000_000


@contextmanager
def two_nodes(home: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A cluster's address, and a function that tells it to `add` a node or to `kill` the one added last."""
    nodes = subprocess.Popen(
        [sys.executable, "-m", "tests.support.clusters.ray_nodes"],
        cwd=ROOT,
        env=Cluster(home).environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    replies = (line.strip() for line in nodes.stdout if line.startswith(("127.", "done")))

    def tell(request: str) -> None:
        print(request, file=nodes.stdin, flush=True)
        assert next(replies) == "done"

    try:
        yield next(replies), tell
    finally:
        nodes.stdin.close()
        nodes.wait(timeout=60)


def test_a_run_goes_on_without_a_node_that_died_and_takes_it_back(tmp_path: Path) -> None:
    """There are no regular checkpoints: all that is kept was saved on request, ours before the death, Ray's later."""
    data = digits(tmp_path / "data")
    run, log = tmp_path / "ray" / "run", tmp_path / "log"
    arguments = [*TRAINING, "--data.path", str(data), "--run.name", "run", "--checkpoint.every_steps", str(NEVER)]
    with two_nodes(tmp_path / "home") as (address, tell):
        environment = Cluster(tmp_path / "home").environment | {
            "RAY_ADDRESS": address,
            # Ray asks for two workers until it knows that the node is gone; by default each attempt takes a minute.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
            "RAYDDPM_FAULT": "step.after:rank=0:again:delay=0.1",
        }
        with log.open("w") as output:
            running = subprocess.Popen(
                [
                    *(sys.executable, "trainer/main.py", *arguments),
                    *("--run.storage", str(tmp_path / "ray"), "--train.num_steps", str(NEVER)),
                ],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

        def wait_for(condition: Callable[[], bool]) -> None:
            deadline = time.monotonic() + 180
            while not condition():
                assert time.monotonic() < deadline, log.read_text()[-5000:]
                assert running.poll() is None, log.read_text()[-5000:]
                time.sleep(0.1)

        def last_step() -> int:
            points = read_metrics(run).get("train/loss", []) if run.exists() else []
            return max((step for step, _, _ in points), default=0)

        def groups() -> list[tuple[str, str]]:
            return re.findall(r"training from step (\d+) to \d+ on (\d) workers", log.read_text())

        wait_for(lambda: last_step() >= 12)
        checkpoint_path(run).touch()
        wait_for(lambda: not checkpoint_path(run).exists())
        tell("kill")
        wait_for(lambda: len(groups()) == 2 and last_step() >= int(groups()[1][0]) + 5)
        tell("add")
        known = last_step()
        wait_for(lambda: len(groups()) == 3 and last_step() >= int(groups()[2][0]) + 5)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=120) == 130, log.read_text()[-5000:]
    starts = [(int(step), int(num_workers)) for step, num_workers in groups()]
    assert [num_workers for _, num_workers in starts] == [2, 1, 2]
    assert 12 <= starts[1][0] < starts[2][0]
    assert known <= starts[2][0]
    with open_dataset(data) as dataset:
        found = audit(run / "ledger", dataset)
    assert list(found.attempts.values()) == starts
    num_steps = found.num_steps
    local = command(
        *(*arguments, "--workers.num_workers", "1", "--launcher", "local", "--train.num_steps", str(num_steps)),
        *("--run.storage", str(tmp_path / "local")),
        OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    )
    assert local.returncode == 0, local.stderr
    assert losses(run) == pytest.approx(losses(tmp_path / "local" / "run")[: len(losses(run))], rel=1e-4)
