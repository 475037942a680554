"""The queue follows from what is on disk: complete checkpoints times protocols, less the results."""

import json

import pytest

from cluster.lease import try_lease
from cluster.storage import remove_directory
from eval.backlog import MAX_ATTEMPTS, Selection, find_runs, held_checkpoints, is_final, jobs_of_run, pending_jobs
from eval.protocol import parse_protocol
from eval.results import write_result
from tests.eval_support import make_checkpoint, make_run

PROTOCOLS = [parse_protocol("fd_efficientnet_lite0_16"), parse_protocol("kd_efficientnet_lite0_16")]


def pending(run, selection, now=1e9):
    return [
        (job.step, job.protocol.family) for job in pending_jobs(jobs_of_run(run, PROTOCOLS, selection), selection, now)
    ]


def test_the_queue_is_complete_checkpoints_times_protocols_newest_first(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200))
    (run / "checkpoints" / ".tmp-step-00000300-aaaa").mkdir()
    (run / "checkpoints" / "step-00000400-aaaa").mkdir()
    families = ["fd_efficientnet_lite0", "kd_efficientnet_lite0"]
    assert pending(run, Selection()) == [(step, family) for step in (200, 100) for family in families]
    assert [step for step, _ in pending(run, Selection(order="oldest"))] == [100, 100, 200, 200]


def test_every_steps_chooses_checkpoints_and_keeps_the_last(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200, 300, 450))
    assert [step for step, _ in pending(run, Selection(every_steps=200))] == [450, 450, 200, 200]


def test_protocols_are_bound_to_the_runs_data(tmp_path):
    run = make_run(tmp_path / "runs")
    digest = json.loads((run / "run.json").read_text())["manifest_digest"]
    assert {job.protocol.reference_digest for job in jobs_of_run(run, PROTOCOLS, Selection())} == {digest}


@pytest.mark.parametrize(
    ("result", "due_now", "due_later"),
    [
        ({"status": "done"}, False, False),
        ({"status": "skipped"}, False, False),
        ({"status": "blocked", "time": 1000.0}, False, True),
        ({"status": "failed", "time": 1000.0, "attempts": 1}, False, True),
        ({"status": "failed", "time": 1000.0, "attempts": MAX_ATTEMPTS}, False, False),
    ],
)
def test_what_a_result_means_for_the_queue(tmp_path, result, due_now, due_later):
    run = make_run(tmp_path / "runs", steps=(100,))
    selection = Selection(retry_seconds=60)
    [job, _] = jobs_of_run(run, PROTOCOLS, selection)
    write_result(job.result_path, result)
    assert (job in pending_jobs([job], selection, 1030.0)) == due_now
    assert (job in pending_jobs([job], selection, 1061.0)) == due_later
    assert is_final(result) != due_later


def test_a_damaged_result_file_counts_as_none(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100,))
    [job, _] = jobs_of_run(run, PROTOCOLS, Selection())
    write_result(job.result_path, {"status": "done"})
    job.result_path.write_text('{"status": "do')
    assert pending_jobs([job], Selection(), 0.0) == [job]


def test_runs_are_found_by_folder_or_by_name(tmp_path):
    one, other = make_run(tmp_path / "runs", "one"), make_run(tmp_path / "runs", "other")
    assert find_runs(tmp_path / "runs") == [one, other]
    assert find_runs(tmp_path / "runs", "other") == [other]
    assert find_runs(tmp_path / "runs", "third") == find_runs(tmp_path / "nowhere") == []


def test_held_checkpoints_are_named_while_they_are_evaluated(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200))
    job = jobs_of_run(run, PROTOCOLS, Selection())[0]
    assert held_checkpoints(run) == set()
    with try_lease(job.lease_path):
        assert held_checkpoints(run) == {job.checkpoint.name}
    assert held_checkpoints(run) == set()


def test_a_deleted_checkpoint_leaves_the_queue(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100,))
    newer = make_checkpoint(run, 200)
    assert len(pending(run, Selection())) == 4
    remove_directory(newer)
    assert [step for step, _ in pending(run, Selection())] == [100, 100]
