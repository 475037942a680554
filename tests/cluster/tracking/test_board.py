"""What TensorBoard itself reads from the files that a run's spool becomes."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.commands import main
from cluster.tracking.board import BoardWriter
from cluster.tracking.spool import Spool, read_metrics
from tests.support.failures.faults import TINY, run
from tests.support.tracking import describe

Points = list[tuple[int, float]]


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "storage" / "some-run"
    directory.mkdir(parents=True)
    describe(directory, "")
    return directory


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def shown(folder: Path) -> dict[str, Points]:
    """Every scalar that TensorBoard shows of one of its runs, a folder."""
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return {tag: [(point.step, point.value) for point in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def write(run_directory: Path, logs: Path) -> int:
    writer = BoardWriter(run_directory, logs)
    num_points = writer.drain()
    writer.close()
    return num_points


def test_every_point_is_shown_at_its_step_and_time(run_directory: Path, logs: Path) -> None:
    spool = Spool(run_directory, "train")
    spool.params({"seed": 0})
    spool.metrics({"train/loss": 0.5, "train/grad_norm": 2.0}, 10)
    spool.metrics({"train/loss": float("nan")}, 20)
    spool.status("FINISHED")
    assert write(run_directory, logs) == 3
    assert shown(logs / "train")["train/grad_norm"] == [(10, 2.0)]
    first, second = shown(logs / "train")["train/loss"]
    assert first == (10, 0.5)
    assert second[0] == 20
    assert math.isnan(second[1])
    board = EventAccumulator(str(logs / "train"))
    board.Reload()
    times = [time for _, _, time in read_metrics(run_directory)["train/loss"]]
    assert [point.wall_time for point in board.Scalars("train/loss")] == times


def test_what_is_said_later_is_added_and_nothing_twice(run_directory: Path, logs: Path) -> None:
    spool, writer = Spool(run_directory, "train"), BoardWriter(run_directory, logs)
    spool.metrics({"train/loss": 1.0}, 1)
    assert [writer.drain(), writer.drain()] == [1, 0]
    spool.metrics({"train/loss": 2.0}, 2)
    Spool(run_directory, "eval").metrics({"eval/fid": 9.0}, 2)
    assert writer.drain() == 2
    writer.close()
    assert shown(logs / "train") == {"train/loss": [(1, 1.0), (2, 2.0)]}
    assert shown(logs / "eval") == {"eval/fid": [(2, 9.0)]}


def test_another_time_writes_everything_anew(run_directory: Path, logs: Path) -> None:
    Spool(run_directory, "train").metrics({"train/loss": 1.0}, 1)
    assert [write(run_directory, logs) for _ in range(2)] == [1, 1]
    assert shown(logs / "train") == {"train/loss": [(1, 1.0)]}
    assert len(list((logs / "train").iterdir())) == 1


def test_a_tensorboard_that_is_open_forgets_what_was_written_before(run_directory: Path, logs: Path) -> None:
    Spool(run_directory, "train").metrics({"train/loss": 1.0}, 1)
    write(run_directory, logs)
    board = EventAccumulator(str(logs / "train"))
    board.Reload()
    write(run_directory, logs)
    board.Reload()
    assert [point.step for point in board.Scalars("train/loss")] == [1]


@pytest.mark.parametrize("while_open", [True, False])
def test_points_that_a_changed_run_trained_again_take_the_place_of_the_void_ones(
    run_directory: Path, logs: Path, while_open: bool
) -> None:
    """After --force-changes; the evaluator's points are its own affair."""
    spool, writer = Spool(run_directory, "train"), BoardWriter(run_directory, logs)
    spool.start(0, "before")
    for step in (1, 2, 3):
        spool.metrics({"train/loss": float(step)}, step)
    Spool(run_directory, "eval").metrics({"eval/fid": 9.0}, 3)
    if while_open:
        writer.drain()
    again = Spool(run_directory, "train")
    again.start(1, "after")
    for step in (2, 3, 4):
        again.metrics({"train/loss": 10.0 * step}, step)
    writer.drain()
    writer.close()
    assert shown(logs / "train")["train/loss"] == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    assert shown(logs / "eval")["eval/fid"] == [(3, 9.0)]
    kept = {name: [(step, value) for step, value, _ in points] for name, points in read_metrics(run_directory).items()}
    assert shown(logs / "train") | shown(logs / "eval") == kept


def test_a_run_that_is_stopped_and_resumed_shows_each_step_once(
    data: Path, tmp_path: Path, logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Step 5 is trained twice: the last checkpoint before the kill is that of step 4, if it was written in time."""
    where = ("--data.path", str(data), "--run.storage", str(tmp_path), "--run.name", "run")
    arguments = [*TINY, *where, "--checkpoint.every_steps", "4"]
    killed = run(tmp_path / "output", *arguments, RAYDDPM_FAULT="step.before:step=6:kill")
    assert killed.code == -9, killed.output
    assert [step for step, _, _ in read_metrics(tmp_path / "run")["train/loss"]][-1] == 5
    assert main(["tensorboard", str(tmp_path / "run"), str(logs)]) == 0
    assert [step for step, _ in shown(logs / "run" / "train")["train/loss"]] == [1, 2, 3, 4, 5]
    resumed = run(tmp_path / "output", *arguments)
    assert resumed.code == 0, resumed.output
    assert re.search(r"training from step [04] to 8", resumed.output), resumed.output
    assert main(["tensorboard", str(tmp_path / "run"), str(logs)]) == 0
    losses = shown(logs / "run" / "train")["train/loss"]
    assert losses == [(step, np.float32(value)) for step, value, _ in read_metrics(tmp_path / "run")["train/loss"]]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert f"tensorboard --logdir {logs}" in capsys.readouterr().out


def test_without_the_package_a_line_says_what_to_install(
    run_directory: Path, logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    assert main(["tensorboard", str(run_directory), str(logs)]) == 2
    assert "pip install 'rayddpm[tensorboard]'" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tensorboard", str(tmp_path), str(tmp_path / "logs")]) == 2
    assert "holds no run.json: give a run's own folder" in capsys.readouterr().err
