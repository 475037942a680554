"""Ctrl-C where Ray is at work, in a real terminal: one line, exit code 130, nothing left running."""

from pathlib import Path

import pytest

from cluster.progress import has_trained, read_progress
from cluster.storage import complete_directories
from tests.support.clusters.cluster import Cluster
from tests.support.failures.terminal import Terminal, assert_ends_well, python, says_killed, training

pytestmark = [pytest.mark.heavy, pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("moment", ["starting Ray", "waiting for room", "training"])
def test_under_ray(data: Path, tmp_path: Path, moment: str) -> None:
    """While workers are waited for, no worker looks for a stop."""
    run = tmp_path / "run"

    def has_come(terminal: Terminal) -> bool:
        return str(read_progress(run).get("phase", "")).startswith(moment)

    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Terminal(training(data, tmp_path, "ray", 2), environment=home) as terminal:
        terminal.wait_for(lambda: has_come(terminal))
        terminal.press_ctrl_c()
        kept = "with a checkpoint of step" if moment == "training" else "before there was a checkpoint"
        assert_ends_well(terminal, f"^stopped {kept}")
    assert says_killed(run)


def test_the_demo(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = tmp_path / "runs" / "demo-digits"
    demo = python("-m", "cluster", "demo", "digits", "--output", str(tmp_path))
    with Terminal(demo, environment=home) as terminal:
        terminal.wait_for(lambda: has_trained(run))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^the demo is stopped")
    assert complete_directories(run / "checkpoints")
    assert says_killed(run)


def test_a_job_that_is_followed(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = training(data, tmp_path, "ray", 1)[2:]
    submit = python("-m", "cluster", "submit", "--", *arguments)
    with Terminal(submit, environment=cluster.environment) as terminal:
        terminal.wait_for(lambda: has_trained(run))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "stopped")
    assert complete_directories(run / "checkpoints")
    assert says_killed(run)
