"""What our own code does for a run of many checkpoints, counted in files: no operation looks into all of them again."""

import re
from pathlib import Path

import pytest

from benchmarks.scale_load import PROTOCOL, FileCounts, make_run, measure
from eval.backlog import Selection
from eval.service.deleted import DeletedCheckpoints

COUNTS = FileCounts()


def test_nothing_that_is_done_again_and_again_opens_more_files_for_more_checkpoints(tmp_path: Path) -> None:
    few = measure(tmp_path / "few", 4, num_workers=10)
    many = measure(tmp_path / "many", 40, num_workers=10)
    assert len(few) == 7
    for name in few.keys() - {"backlog: what retention took, at a start"}:
        if not re.match("lease", name):  # threads that race open it once or twice
            assert {**many[name], "seconds": 0} == {**few[name], "seconds": 0}, name


@pytest.mark.parametrize("num_checkpoints", [5, 25])
def test_deleted_checkpoints_cost_one_listing_and_a_look_at_each_result(tmp_path: Path, num_checkpoints: int) -> None:
    run = make_run(tmp_path, num_checkpoints, deleted=True)
    with COUNTS as counted:
        assert DeletedCheckpoints(run).skipped([PROTOCOL], Selection()) == []
    assert counted["opens"] == num_checkpoints + 2  # and the spool, and run.json
    assert counted["listings"] == 2
