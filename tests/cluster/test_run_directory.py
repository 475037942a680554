"""What counts as a checkpoint by its name, and which of them is the newest."""

import os
from pathlib import Path

import pytest

from cluster.run_directory import checkpoint_name, checkpoint_step, complete_checkpoints, newest_step
from common.files import write_json_atomic


def make(run_directory: Path, name: str, committed_unix_seconds: float = 1e9) -> Path:
    directory = run_directory / "checkpoints" / name
    directory.mkdir(parents=True)
    write_json_atomic(directory / "COMPLETE.json", {"files": {}})
    os.utime(directory / "COMPLETE.json", (committed_unix_seconds, committed_unix_seconds))
    return directory


@pytest.mark.parametrize("step", [0, 5000, 99_999_999, 100_000_000, 12_345_678_901])
def test_a_name_reads_as_the_step_it_was_made_from(step: int) -> None:
    assert checkpoint_step(checkpoint_name(step, "0a1b2c3d")) == step


@pytest.mark.parametrize(
    "name",
    ["best", "zz-keep", "step-300-aaaa", "step-00000300", "step-000000300-aaaa", "step-00000300-aaaa-copy"],
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        checkpoint_step(name)


def test_steps_of_nine_digits_and_more_come_after_those_of_eight(tmp_path: Path) -> None:
    steps = [99_999_999, 100_000_000, 999_999_999, 1_000_000_000]
    for step in reversed(steps):
        make(tmp_path, checkpoint_name(step, "aaaa"))
    assert [checkpoint_step(path.name) for path in complete_checkpoints(tmp_path)] == steps
    assert newest_step(tmp_path) == 1_000_000_000


def test_folders_of_other_names_do_not_count_and_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = make(tmp_path, "step-00000300-aaaa")
    make(tmp_path, "zz-keep")
    make(tmp_path, ".tmp-step-00000400-aaaa")
    (tmp_path / "checkpoints" / "step-00000500-aaaa").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").touch()
    for _ in range(2):
        assert complete_checkpoints(tmp_path) == [ours]
    assert [message.split(" ")[0] for message in caplog.messages] == [str(tmp_path / "checkpoints" / "zz-keep")]


def test_of_two_at_one_step_the_one_committed_later_is_the_newer(tmp_path: Path) -> None:
    newer = make(tmp_path, "step-00000300-0000", committed_unix_seconds=2e9)
    older = make(tmp_path, "step-00000300-ffff", committed_unix_seconds=1e9)
    assert complete_checkpoints(tmp_path) == [older, newer]


def test_one_that_cannot_be_looked_at_is_still_there(tmp_path: Path) -> None:
    """A link to itself: the kernel refuses to look, and does not say that there is no file."""
    readable, unreadable = make(tmp_path, "step-00000300-aaaa"), make(tmp_path, "step-00000300-bbbb")
    (unreadable / "COMPLETE.json").unlink()
    (unreadable / "COMPLETE.json").symlink_to(unreadable / "COMPLETE.json")
    assert complete_checkpoints(tmp_path) == [unreadable, readable]


def test_a_run_without_checkpoints_is_at_step_0(tmp_path: Path) -> None:
    assert complete_checkpoints(tmp_path) == []
    assert newest_step(tmp_path) == 0
