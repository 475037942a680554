"""The queue follows from what is on disk; leases keep two evaluators apart and outlive neither."""

import json
import multiprocessing
import os
import time

import pytest

from cluster.lease import Lease, LostLeaseError, try_lease
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


def test_a_lease_is_held_by_one_and_free_after(tmp_path):
    path = tmp_path / "x.lease"
    lease = try_lease(path)
    assert lease.attempt == 1
    assert try_lease(path) is None
    lease.release()
    assert try_lease(path).attempt == 1


def test_a_lease_whose_heartbeat_is_old_is_taken_over_and_its_owner_told(tmp_path):
    path = tmp_path / "x.lease"
    first = try_lease(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"heartbeat": time.time() - 100, "machine": "elsewhere"}))
    assert try_lease(path, stale_seconds=200) is None
    second = try_lease(path, stale_seconds=90)
    assert second.attempt == 2
    with pytest.raises(LostLeaseError):
        first.check()
    with pytest.raises(LostLeaseError):
        first.renew()
    first.release()
    second.check()


def hold_forever(path, ready):
    assert try_lease(path) is not None
    ready.set()
    time.sleep(600)


def test_a_killed_evaluators_lease_is_free_at_once_on_its_machine(tmp_path):
    path = tmp_path / "x.lease"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold_forever, args=(path, ready))
    process.start()
    assert ready.wait(60)
    assert try_lease(path) is None
    process.kill()
    process.join()
    assert try_lease(path).attempt == 2


def test_a_held_lease_is_renewed_while_its_owner_works(tmp_path):
    path = tmp_path / "x.lease"
    with try_lease(path, stale_seconds=0.3) as lease:
        first = json.loads(path.read_text())["heartbeat"]
        deadline = time.monotonic() + 10
        while json.loads(path.read_text())["heartbeat"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert json.loads(path.read_text())["heartbeat"] > first
        assert isinstance(lease, Lease)
    assert not path.exists()


def race(path, start, wins):
    start.wait(60)
    if try_lease(path) is not None:
        wins.put(os.getpid())
        time.sleep(2)


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_evaluators_one_gets_the_lease(tmp_path, stale):
    path = tmp_path / "x.lease"
    if stale:
        path.write_text(json.dumps({"token": "old", "heartbeat": 0.0, "machine": "elsewhere", "pid": 1, "attempt": 1}))
    context = multiprocessing.get_context("fork")
    start, wins = context.Event(), context.Queue()
    processes = [context.Process(target=race, args=(path, start, wins)) for _ in range(8)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join()
    assert wins.qsize() == 1


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
