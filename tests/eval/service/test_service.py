"""The service: what it evaluates, in which order, when it ends, and what it says."""

import logging
import threading
import time
from pathlib import Path

import pytest

from cluster.storage import remove_directory
from common.files import write_json_atomic
from eval.backlog import Selection
from eval.protocol import parse_protocol
from eval.results import all_results, read_result
from eval.service.runner import Runner
from eval.service.service import Service, describe_result
from eval.settings import EvaluationSettings
from tests.support.evaluation import make_checkpoint, make_run

SETTINGS = EvaluationSettings(device="cpu", num_threads=1, block_images=16, num_bootstrap=0)
PROTOCOL = parse_protocol("fd_efficientnet_lite0_8_ddim2")


def service(storage: Path, selection: Selection | None = None, **options) -> Service:
    runner = Runner(SETTINGS, upload=lambda run_directory: None)
    return Service(storage, [PROTOCOL], selection or Selection(), runner, poll_seconds=0.05, **options)


def steps_of(run: Path) -> list[int]:
    return [result["step"] for result in all_results(run)]


def test_once_evaluates_what_is_there_and_a_second_time_nothing(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200))
    assert service(tmp_path / "runs").run_once() == 2
    assert steps_of(run) == [100, 200]
    assert service(tmp_path / "runs").run_once() == 0


def test_newest_first_leaves_the_oldest_for_last(tmp_path, caplog):
    make_run(tmp_path / "runs", steps=(100, 200, 300))
    with caplog.at_level(logging.INFO):
        service(tmp_path / "runs").run_once()
    said = [record.message for record in caplog.records if "fd_efficientnet" in record.message]
    assert [message.split(":")[0] for message in said] == [f"run-a step {step}" for step in (300, 200, 100)]


def test_two_evaluators_share_a_backlog_and_nothing_is_done_twice(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200, 300, 400))
    services = [service(tmp_path / "runs", Selection(order=order)) for order in ("newest", "oldest")]
    counts: list[int] = []
    threads = [threading.Thread(target=lambda s=s: counts.append(s.run_once())) for s in services]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps_of(run) == [100, 200, 300, 400]
    assert {result["attempts"] for result in all_results(run)} == {1}


def test_until_finished_waits_for_the_run_to_come_and_to_finish(tmp_path):
    storage = tmp_path / "runs"
    thread = threading.Thread(target=service(storage).run, kwargs={"until_finished": True})
    thread.start()
    run = make_run(storage, steps=(100,), finished=False)
    deadline = time.monotonic() + 300
    while not list(all_results(run)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert steps_of(run) == [100]
    assert thread.is_alive()
    make_checkpoint(run, 200)
    write_json_atomic(run / "FINISHED.json", {"step": 200})
    thread.join(60)
    assert not thread.is_alive()
    assert steps_of(run) == [100, 200]


def test_until_finished_of_one_run_does_not_wait_for_the_others(tmp_path):
    make_run(tmp_path / "runs", "unfinished", steps=(100,), finished=False)
    run = make_run(tmp_path / "runs", "wanted", steps=(100,))
    service(tmp_path / "runs", run_name="wanted").run(until_finished=True)
    assert steps_of(run) == [100]
    assert not list(all_results(tmp_path / "runs" / "unfinished"))


def test_a_blocked_evaluation_ends_until_finished_with_a_word(tmp_path, caplog):
    run = make_run(tmp_path / "runs", steps=(100,))
    blocked = service(tmp_path / "runs")
    blocked.protocols = [parse_protocol("fid_clean_16_ddim2")]
    with caplog.at_level(logging.INFO):
        blocked.run(until_finished=True)
    [result] = all_results(run)
    assert result["status"] == "blocked"
    assert "fetch-weights" in caplog.text
    assert "tried again when the service is started again" in caplog.messages[-1]


def test_a_checkpoint_deleted_before_its_turn_is_recorded_as_skipped(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200), finished=False)
    polling = service(tmp_path / "runs")
    [newer, older] = polling.due()
    remove_directory(older.checkpoint)
    assert polling.due() == [newer]
    result = read_result(older.result_path)
    assert (result["status"], result["step"]) == ("skipped", 100)
    assert "deleted" in result["reason"]
    assert not list(run.glob("evals/*/*.lease"))


def test_a_stop_ends_the_service_at_once(tmp_path):
    make_run(tmp_path / "runs", steps=(100, 200), finished=False)
    stopped = service(tmp_path / "runs")
    stopped.stop.set()
    assert stopped.run_once() == 0
    stopped.run()


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            {"status": "done", "value": 41.2345, "interval": {"high": 42.0345}, "wall_seconds": 9.96}
            | {"images_per_second": 51.2, "protocol": {"metric": "frechet_distance"}},
            "= 41.23 ± 0.80 (10.0 s, 51 images/s)",
        ),
        (
            {"status": "blocked", "reason": "weights: x is missing"},
            "blocked: weights: x is missing; then run the same command again",
        ),
    ],
)
def test_one_readable_line_for_each_evaluation(tmp_path, result, expected):
    make_run(tmp_path / "runs", steps=(100,))
    [job] = service(tmp_path / "runs").jobs()
    assert describe_result(job, result).endswith(expected)
    assert "run-a step 100: fd_efficientnet_lite0_8_ddim2" in describe_result(job, result)
