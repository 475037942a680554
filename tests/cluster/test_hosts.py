"""A Ray cluster over two hosts whose names lead to loopback."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.tracking.spool import read_metrics
from tests.support.clusters.ray_hosts import RayHosts, ray_hosts

pytestmark = [pytest.mark.slow, pytest.mark.heavy, pytest.mark.ray]

SMALL = (
    *("--preset", "demo", "--workers.num_workers", "2", "--train.global_batch_size", "8", "--train.num_steps", "4"),
    *("--model.channel_multipliers", "[1]", "--model.num_res_blocks", "1", "--model.attention_resolutions", "[8]"),
    *("--train.log_every_steps", "1", "--checkpoint.every_steps", "4"),
)


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[RayHosts]:
    with ray_hosts(2) as cluster:
        yield cluster


def training(data: Path, storage: Path, *more: str) -> tuple[str, ...]:
    where = ("--data.path", str(data), "--run.storage", str(storage), "--run.name", "run")
    return ("trainer/main.py", *SMALL, *where, *more)


def test_workers_on_two_hosts_train(two_hosts: RayHosts, data: Path, tmp_path: Path) -> None:
    code, output = two_hosts.run(sys.executable, *training(data, tmp_path))
    assert code == 0, output
    assert [step for step, _, _ in read_metrics(tmp_path / "run")["train/loss"]] == [1, 2, 3, 4]


def test_a_start_that_cannot_connect_is_tried_again_and_one_line(
    two_hosts: RayHosts, data: Path, tmp_path: Path
) -> None:
    """By a user's own choice, of an interface that the hosts do not share."""
    wrong = json.dumps({"env_vars": {"GLOO_SOCKET_IFNAME": "lo"}})
    submit = ("ray", "job", "submit", "--address", two_hosts.dashboard, "--working-dir", ".")
    job = ("python", *training(data, tmp_path, "--workers.max_failures", "1"))
    code, output = two_hosts.run(*submit, "--runtime-env-json", wrong, "--", *job)
    assert code == 1, output
    assert "start 1 failed" in output
    error = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(error) == 1, output
    assert "could not connect to each other" in error[0]
    assert "10.77.0.2 by lo" in error[0]
