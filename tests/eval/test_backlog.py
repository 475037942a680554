"""The queue follows from what is on disk: complete checkpoints times protocols, less the results."""

import json
import os
import shutil
from pathlib import Path

import pytest

from cluster.lease import try_lease
from cluster.run_directory import is_being_evaluated
from cluster.storage import remove_directory
from common.files import read_json, write_json_atomic
from eval.backlog import (
    Selection,
    find_runs,
    jobs_of_run,
    pending_jobs,
)
from eval.protocol import parse_protocol
from eval.results import MAX_ATTEMPTS, all_results, is_final, write_result
from tests.support.evaluation import made_up_result, make_checkpoint, make_run

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
    write_result(job.result_path, made_up_result(job, **result))
    assert (job in pending_jobs([job], selection, 1030.0)) == due_now
    assert (job in pending_jobs([job], selection, 1061.0)) == due_later
    assert is_final(result) != due_later


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda good: json.dumps(good)[:-9],
        lambda good: "[]",
        lambda good: "3",
        lambda good: json.dumps({**good, "checkpoint": 3}),
        lambda good: '{"protocol": {}}',
        lambda good: '{"status": "done"}',
        lambda good: json.dumps({**good, "value": None}),
        lambda good: json.dumps({**good, "value": float("nan")}),
        lambda good: json.dumps({**good, "status": "fine"}),
        lambda good: json.dumps({**good, "step": 7}),
        lambda good: json.dumps({**good, "attempts": "x"}),
        lambda good: json.dumps({**good, "protocol": {**good["protocol"], "num_samples": 17}}),
        lambda good: json.dumps({**good, "protocol": {**good["protocol"], "num_samples": "x"}}),
    ],
)
def test_a_damaged_result_file_counts_as_none(tmp_path, spoilt):
    run = make_run(tmp_path / "runs", steps=(100,))
    [job, _] = jobs_of_run(run, PROTOCOLS, Selection())
    write_result(job.result_path, made_up_result(job))
    assert pending_jobs([job], Selection(), 0.0) == []
    job.result_path.write_text(spoilt(made_up_result(job)))
    assert pending_jobs([job], Selection(), 0.0) == [job]
    assert list(all_results(run)) == []


def test_runs_are_found_by_folder_or_by_name(tmp_path):
    one, other = make_run(tmp_path / "runs", "one"), make_run(tmp_path / "runs", "other")
    assert find_runs(tmp_path / "runs") == [one, other]
    assert find_runs(tmp_path / "runs", "other") == [other]
    assert find_runs(tmp_path / "runs", "third") == find_runs(tmp_path / "nowhere") == []


def test_a_run_json_that_is_broken_hides_that_run_alone_and_is_said_once(tmp_path, caplog):
    run = make_run(tmp_path / "runs", "one")
    for name, text in (("torn", '{"run": "x"'), ("list", "[]"), ("empty", "{}")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "run.json").write_text(text)
    for _ in range(2):
        assert find_runs(tmp_path / "runs") == [run]
    assert sorted(Path(message.split()[0]).parent.name for message in caplog.messages) == ["empty", "list", "torn"]


def test_a_folder_that_is_no_checkpoint_is_left_alone(tmp_path, caplog):
    run = make_run(tmp_path / "runs", steps=(100,))
    expected = pending(run, Selection())
    shutil.copytree(run / "checkpoints" / "step-00000100-aaaa", run / "checkpoints" / "best")
    for _ in range(2):
        assert pending(run, Selection()) == expected
    assert len(caplog.messages) == 1


def test_of_two_attempts_at_one_step_the_newer_counts(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100,))
    old, new = run / "checkpoints" / "step-00000100-aaaa", make_checkpoint(run, 100, "0000")
    os.utime(old / "COMPLETE.json", (1, 1))
    assert {job.checkpoint for job in jobs_of_run(run, PROTOCOLS, Selection())} == {new}


def test_the_last_checkpoint_of_a_run_that_was_stopped_is_its_last(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 170), finished=False)
    write_json_atomic(run / "run.json", {**read_json(run / "run.json"), "num_steps": 1000})
    selection = Selection(every_steps=100)
    with try_lease(run / "lease.json"):
        assert {job.step for job in jobs_of_run(run, PROTOCOLS, selection)} == {100}
    assert {job.step for job in jobs_of_run(run, PROTOCOLS, selection)} == {100, 170}


def test_a_checkpoint_is_held_while_it_is_evaluated(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200))
    job, other = (jobs_of_run(run, PROTOCOLS, Selection())[number] for number in (0, -1))
    assert not is_being_evaluated(run, job.checkpoint.name)
    with try_lease(job.lease_path):
        assert is_being_evaluated(run, job.checkpoint.name)
        assert not is_being_evaluated(run, other.checkpoint.name)
    assert not is_being_evaluated(run, job.checkpoint.name)


def test_a_deleted_checkpoint_leaves_the_queue(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100,))
    newer = make_checkpoint(run, 200)
    assert len(pending(run, Selection())) == 4
    remove_directory(newer)
    assert [step for step, _ in pending(run, Selection())] == [100, 100]
