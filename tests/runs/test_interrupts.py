"""Ctrl-C at every moment of every command, in a real terminal: one line, exit code 130, nothing left running."""

import time
from pathlib import Path

import pytest

from cluster.progress import has_trained
from cluster.storage import complete_directories
from tests.support.evaluation import make_run
from tests.support.failures.terminal import Terminal, assert_ends_well, python, says_killed, training
from tests.support.trainer import TINY_MODEL
from trainer.checkpoint import step_of

pytestmark = pytest.mark.heavy


@pytest.mark.slow
def test_while_training_imports_its_libraries(data: Path, tmp_path: Path) -> None:
    with Terminal(training(data, tmp_path, "local", 1)) as terminal:
        terminal.wait_for(lambda: terminal.has_mapped("libtorch_cpu"))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^interrupted before")


def test_while_two_workers_start(data: Path, tmp_path: Path) -> None:
    with Terminal(training(data, tmp_path, "local", 2)) as terminal:
        terminal.wait_for(lambda: len(terminal.left_over()) >= 3)
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^stopped before there was a checkpoint; the same command starts the run again$")
    assert says_killed(tmp_path / "run")


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_once_while_training_it_ends_with_a_checkpoint(data: Path, tmp_path: Path, num_workers: int) -> None:
    run = tmp_path / "run"
    with Terminal(training(data, tmp_path, "local", num_workers), num_columns=60) as terminal:
        terminal.wait_for(lambda: has_trained(run))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, r"^stopped with a checkpoint of step \d+; the same command goes on from it$")
    (kept,) = complete_directories(run / "checkpoints")
    assert f"checkpoint of step {step_of(kept)};" in terminal.output
    assert says_killed(run)


def test_twice_while_training_it_ends_at_once(data: Path, tmp_path: Path) -> None:
    """Workers that do not come to the end of their step, for a minute, as on storage that hangs."""
    run = tmp_path / "run"
    fault = {"RAYDDPM_FAULT": "step.before:step=4:delay=600"}
    with Terminal(training(data, tmp_path, "local", 2), environment=fault) as terminal:
        terminal.wait_for(lambda: has_trained(run) and (run / "faults").exists())
        terminal.press_ctrl_c()
        terminal.wait_for(lambda: "once more to stop at once" in terminal.output)
        time.sleep(1.2)  # sooner it is the same request
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^ended at once before there was a checkpoint; the same command starts the run")
    assert says_killed(run)
    assert not (run / "lease.json").exists()


@pytest.mark.slow
def test_a_stop_that_cannot_be_written_reaches_the_workers_by_a_signal(data: Path, tmp_path: Path) -> None:
    """A link to nowhere stands where STOP belongs: it cannot be written, as on a full disk."""
    run = tmp_path / "run"
    with Terminal(training(data, tmp_path, "local", 2)) as terminal:
        terminal.wait_for(lambda: has_trained(run))
        (run / "STOP").symlink_to(tmp_path / "missing" / "STOP")
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^stopped with a checkpoint of step")
    assert "they are sent a signal" in terminal.output


def test_while_packing_what_is_packed_is_kept(tmp_path: Path) -> None:
    faces = python("-m", "data_pipeline", "demo", "faces", str(tmp_path / "faces"), "--num-images", "200000")
    with Terminal([*faces, "--num-processes", "2"]) as terminal:
        terminal.wait_for(lambda: any(tmp_path.rglob("*.tar*")))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "kept|interrupted")


def test_while_sampling(tmp_path: Path) -> None:
    from models.config import DiffusionConfig
    from models.networks.table import build_model
    from models.snapshot import write_snapshot

    tensors = build_model(TINY_MODEL).state_dict()
    write_snapshot(tmp_path / "snapshot", tensors, TINY_MODEL, DiffusionConfig(), {})
    sample = python("-m", "models", "sample", str(tmp_path / "snapshot"), "--num-images", "100000")
    with Terminal([*sample, "--output", str(tmp_path / "samples")]) as terminal:
        terminal.wait_for(lambda: "sampling" in terminal.output)
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "interrupted|stopped")


def evaluating(tmp_path: Path, *command: str) -> Terminal:
    """An evaluation of more images than anyone waits for, in blocks."""
    protocol = ("--protocol", "fd_efficientnet_lite0_100k_ddim20")
    return Terminal(python("-m", "eval", *command, *protocol, "--device", "cpu"))


@pytest.mark.parametrize("command", ["run", pytest.param("serve", marks=pytest.mark.slow)])
def test_while_evaluating_finished_blocks_are_kept(tmp_path: Path, command: str) -> None:
    run = make_run(tmp_path)
    with evaluating(tmp_path, command, str(run if command == "run" else tmp_path)) as terminal:
        terminal.wait_for(lambda: any(tmp_path.rglob("block-*.npy")))
        terminal.press_ctrl_c()
        assert_ends_well(
            terminal, "^stopped; finished evaluations and blocks are kept, and the same command goes on from there$"
        )
    assert any(tmp_path.rglob("block-*.npy"))
