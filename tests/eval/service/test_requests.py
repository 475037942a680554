"""Evaluations asked for by hand: files that survive until they are answered, and go first."""

import json
import time

import pytest

from eval.backlog import Selection
from eval.protocol import parse_protocol
from eval.results import all_results, write_result
from eval.service.requests import request_evaluation, requested_jobs
from eval.service.runner import Runner
from eval.service.service import Service
from eval.settings import EvaluationSettings
from tests.support.evaluation import made_up_result, make_run

pytestmark = pytest.mark.heavy

SETTINGS = EvaluationSettings(device="cpu", num_threads=1, block_images=16, num_bootstrap=2)
PROTOCOL = parse_protocol("fd_efficientnet_lite0_8_ddim2")


def service(storage, every_steps=1000):
    runner = Runner(SETTINGS, upload=lambda run_directory: None)
    return Service(storage, [PROTOCOL], Selection(every_steps=every_steps), runner, poll_seconds=0.05)


def test_a_request_survives_until_it_is_answered_and_goes_first(tmp_path):
    storage = tmp_path / "runs"
    run = make_run(storage, steps=(100, 200, 300), finished=False)
    asked = request_evaluation(storage, "run-a", PROTOCOL.name, step=100)
    assert (asked["status"], asked["step"]) == ("queued", 100)
    [job] = requested_jobs(storage)
    assert [due.step for due in service(storage).due()] == [100, 300]
    service(storage).run_once()
    assert [result["step"] for result in all_results(run)] == [100, 300]
    assert requested_jobs(storage) == []
    assert not list((storage / "evaluation-requests").glob("*.json"))
    assert request_evaluation(storage, "run-a", PROTOCOL.name, step=100)["status"] == "done"
    assert job.step == 100


def test_a_request_for_a_failed_evaluation_makes_it_again(tmp_path):
    storage = tmp_path / "runs"
    make_run(storage, steps=(100,))
    [job] = service(storage).jobs()
    write_result(job.result_path, made_up_result(job, "failed", attempts=3, time=time.time()))
    assert service(storage).due() == []
    assert request_evaluation(storage, "run-a", PROTOCOL.name)["status"] == "queued"
    assert service(storage).run_once() == 1
    assert json.loads(job.result_path.read_text())["status"] == "done"


def test_a_request_keeps_every_setting_of_its_protocol(tmp_path):
    storage = tmp_path / "runs"
    make_run(storage, steps=(100,))
    asked = f"fid_clean_512:extractor_sha256={'ab' * 32}"
    assert request_evaluation(storage, "run-a", asked)["protocol"] == "fd_inception_abababab_clean_512"
    [job] = requested_jobs(storage)
    assert job.protocol.extractor_sha256 == "ab" * 32
