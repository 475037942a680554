"""The service's page: JSON, requests by hand, health, and a browser that presses the button and sees the point come."""

import json
import multiprocessing
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import uvicorn

from cluster.lease import try_lease
from cluster.progress import TRAINING, write_progress
from eval.backlog import Selection
from eval.protocol import parse_protocol
from eval.results import all_results, write_result
from eval.service import heartbeat
from eval.service.heartbeat import Heartbeat, living_evaluators
from eval.service.requests import request_evaluation, requested_jobs
from eval.service.runner import Runner
from eval.service.service import Service
from eval.settings import EvaluationSettings
from eval.web.app import build_app, read_status
from eval.web.page_data import dashboard, render_runs
from tests.eval.web.browser import Browser
from tests.support.evaluation import made_up_result, make_run

pytestmark = pytest.mark.heavy

SETTINGS = EvaluationSettings(device="cpu", num_threads=1, block_images=16, num_bootstrap=2)
PROTOCOL = parse_protocol("fd_efficientnet_lite0_8_ddim2")


@contextmanager
def page(storage):
    """The application on a free port; gives its URL."""
    app = build_app(storage, [PROTOCOL], Selection(every_steps=1000))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 300
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def get(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def post(url, value, content_type="application/json", **headers):
    data = json.dumps(value).encode()
    request = urllib.request.Request(url, data, {"Content-Type": content_type, **headers}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def service(storage, every_steps=1000):
    runner = Runner(SETTINGS, upload=lambda run_directory: None)
    return Service(storage, [PROTOCOL], Selection(every_steps=every_steps), runner, poll_seconds=0.05)


def test_an_evaluator_that_was_killed_is_neither_alive_nor_at_work(tmp_path):
    storage = tmp_path / "runs"
    make_run(storage, steps=(100,))
    [job] = service(storage).jobs()

    def work_and_die():
        Heartbeat(storage).write(job)
        try_lease(job.lease_path)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=work_and_die)
    process.start()
    process.join()
    assert list((storage / "evaluators").glob("*.json"))
    assert living_evaluators(storage) == []
    [run] = read_status(storage, [PROTOCOL], Selection())["runs"]
    assert [job["status"] for job in run["queue"]] == ["waiting"]


def test_an_evaluator_is_alive_however_long_it_pauses(tmp_path, monkeypatch):
    storage = tmp_path / "runs"
    storage.mkdir()
    monkeypatch.setattr(heartbeat, "ALIVE_SECONDS", 1.0)
    idle = Heartbeat(storage)
    idle.write(None)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert living_evaluators(storage)
        time.sleep(0.1)
    idle.remove()
    assert living_evaluators(storage) == []


def test_two_evaluators_of_one_hosts_name_and_pid_are_two(tmp_path):
    """As in two containers, where the only process is the first."""
    storage = tmp_path / "runs"
    storage.mkdir()
    first, second = Heartbeat(storage), Heartbeat(storage)
    for evaluator in (first, second):
        evaluator.write(None)
    assert len(living_evaluators(storage)) == 2
    first.remove()
    assert len(living_evaluators(storage)) == 1
    second.remove()


def test_final_failures_and_skips_are_on_the_page(tmp_path):
    storage = tmp_path / "runs"
    make_run(storage, steps=(1000, 2000))
    newer, older = service(storage).jobs()
    write_result(newer.result_path, made_up_result(newer, "failed", attempts=3, reason="out of <memory>"))
    write_result(older.result_path, made_up_result(older, "skipped", reason="it was deleted"))
    html = render_runs(dashboard(storage, [PROTOCOL], Selection()))
    assert "out of &lt;memory&gt;" in html
    assert "it was deleted" in html


def test_the_json_names_every_wanted_evaluation_and_its_state(tmp_path):
    storage = tmp_path / "runs"
    make_run(storage, steps=(1000, 2000, 3000))
    polling = service(storage)
    jobs = {job.step: job for job in polling.jobs()}
    polling.runner.run(jobs[3000])
    blocked = made_up_result(jobs[1000], "blocked", reason="weights: none", time=time.time())
    write_result(jobs[1000].result_path, blocked)
    with page(storage) as url, try_lease(jobs[2000].lease_path):
        _, body = get(f"{url}/api/status")
    [run] = json.loads(body)["runs"]
    states = {job["step"]: (job["status"], job["reason"]) for job in run["queue"]}
    assert states == {3000: ("done", ""), 2000: ("running", ""), 1000: ("blocked", "weights: none")}


def test_a_run_that_no_evaluator_looks_after_is_not_said_to_wait(tmp_path):
    storage = tmp_path / "runs"
    for name in ("ours", "other"):
        make_run(storage, name, steps=(100,))
    evaluator = Heartbeat(storage, "ours")

    def states():
        found = read_status(storage, [PROTOCOL], Selection())
        return {run["run"]: run["queue"][0]["status"] for run in found["runs"]}

    assert states() == {"ours": "waiting", "other": "waiting"}  # for an evaluator
    evaluator.write(None)
    assert states() == {"ours": "waiting", "other": "unattended"}
    request_evaluation(storage, "other", PROTOCOL.name, 100)
    assert states() == {"ours": "waiting", "other": "waiting"}
    evaluator.remove()


def test_the_steps_that_the_page_names_belong_together(tmp_path):
    """Points of the training loss come every so many steps; a checkpoint may be newer."""
    run = make_run(tmp_path / "runs", steps=(13,), finished=False)
    [shown] = dashboard(tmp_path / "runs", [PROTOCOL], Selection())["runs"]
    assert (shown["steps"], shown["summary"]["reached"]) == ([13], 13)
    write_progress(run, TRAINING, 17)
    [shown] = dashboard(tmp_path / "runs", [PROTOCOL], Selection())["runs"]
    assert shown["summary"]["reached"] == 17


def test_health_is_that_of_the_evaluators(tmp_path):
    storage = tmp_path / "runs"
    make_run(storage, steps=(100,))
    with page(storage) as url:
        assert get(f"{url}/healthz")[0] == 503
        polling = service(storage)
        polling.run_once()
        status, body = get(f"{url}/healthz")
        assert (status, json.loads(body)["status"]) == (200, "ok")
        polling.heartbeat.remove()
        assert get(f"{url}/healthz")[0] == 503


@pytest.mark.parametrize(
    ("order", "named"),
    [
        ({"run": "../run-a", "protocol": PROTOCOL.name}, "there are: run-a"),
        ({"run": "run-a", "protocol": "fid_50k"}, "fid_50k"),
        ({"run": "run-a", "protocol": PROTOCOL.name, "step": 7}, "there are: 100"),
    ],
)
def test_a_wrong_request_is_refused_with_a_reason(tmp_path, order, named):
    make_run(tmp_path / "runs", steps=(100,))
    with page(tmp_path / "runs") as url:
        status, body = post(f"{url}/api/evaluate", order)
    assert status == 422
    assert named in body["detail"]
    assert requested_jobs(tmp_path / "runs") == []


def test_strangers_get_nothing(tmp_path):
    """Another site's form, a name that points here, a path out of the folder."""
    make_run(tmp_path / "runs", steps=(100,))
    (tmp_path / "secret.txt").write_text("secret")
    with page(tmp_path / "runs") as url:
        order = {"run": "run-a", "protocol": PROTOCOL.name}
        for content_type in ("text/plain", "text/plain; application/json", "application/x-www-form-urlencoded"):
            assert post(f"{url}/api/evaluate", order, content_type)[0] in (415, 422)
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
            assert post(f"{url}/api/evaluate", order, Origin=origin)[0] == 403
        assert get(f"{url}/api/status", Host="evil.example")[0] == 400
        for path in ("../secret.txt", "%2e%2e/secret.txt", "run-a/run.json", "/etc/passwd"):
            assert get(f"{url}/files/{path}")[0] == 404
        assert requested_jobs(tmp_path / "runs") == []
        assert post(f"{url}/api/evaluate", order, Origin=url)[0] == 202


def test_a_scheduled_time_brings_the_newest_numbers_and_reports(tmp_path):
    storage = tmp_path / "runs"
    one, other = make_run(storage, "one", steps=(100, 250)), make_run(storage, "other", steps=(100,), finished=False)
    polling = service(storage, every_steps=100_000)
    polling.run_schedule()
    assert [result["step"] for result in all_results(one)] == [250]
    assert [result["step"] for result in all_results(other)] == [100]
    for folder in (one, other, storage):
        [report] = (folder / "reports").glob("*.html")
        assert report.with_suffix(".json").exists()
        assert "step 250" in report.read_text() or folder == other
    spooled = [json.loads(line) for path in (one / "spool").glob("eval-report-*.jsonl") for line in path.open()]
    assert {event["folder"] for event in spooled} == {"reports"}
    with page(storage) as url:
        _, body = get(f"{url}/api/status")
        reports = json.loads(body)["reports"]
        assert len(reports) == 3
        with urllib.request.urlopen(f"{url}/files/{reports[0]}", timeout=60) as answer:
            assert answer.headers["Content-Security-Policy"] == "sandbox"


@pytest.mark.needs("chromium")
def test_in_a_browser_evaluate_now_brings_the_new_point(tmp_path):
    storage = tmp_path / "runs"
    make_run(storage, steps=(1000, 2001, 3000))
    polling = service(storage)
    polling.run_once()
    evaluator = threading.Thread(target=polling.run)
    with page(storage) as url:
        browser = Browser(url, tmp_path / "profile")
        try:
            browser.wait_for("document.querySelectorAll('svg').length === 1")
            rows = "document.querySelectorAll('table tbody:not([data-queue]) tr').length"
            assert browser.run(rows) == 2
            browser.run("document.querySelector('select[name=step]').value = '2001'")
            browser.run("document.querySelector('.run button').click()")
            browser.wait_for("document.getElementById('said').textContent.includes('step 2001 is queued')")
            browser.wait_for("!!document.querySelector('[data-queue] .status')")
            evaluator.start()
            browser.wait_for(f"{rows} === 3")
            assert "2,001" in browser.run("document.getElementById('runs').textContent")
            browser.wait_for("document.getElementById('live').className === 'ok'")
            assert browser.picture().startswith(b"\x89PNG")
        finally:
            browser.close()
            polling.stop.set()
            evaluator.join()
