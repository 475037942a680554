"""The service with several runs, schedules, deletions, outages: none waits for ever, nothing goes unrecorded."""

import errno
import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from cluster.storage import remove_directory
from cluster.tracking.spool import Spool
from cluster.tracking.uploader import Uploader
from common.files import write_json_atomic
from eval.backlog import Selection, jobs_of_run
from eval.protocol import parse_protocol
from eval.results import all_results, write_result
from eval.service.runner import Runner
from eval.service.service import Service
from eval.service.uploads import LateUploads
from eval.settings import EvaluationSettings
from tests.support.evaluation import made_up_result, make_checkpoint, make_run
from tests.support.failures.stalls import failing_to_open, in_child

SETTINGS = EvaluationSettings(device="cpu", num_threads=1, num_bootstrap=0)
PROTOCOL = parse_protocol("bits_per_dim_2")  # no feature network: done in a moment


class Watched(Runner):
    """A runner that tells what it was given, and calls `after` when it is done with a job."""

    def __init__(self, after=lambda job: None):
        super().__init__(SETTINGS, upload=lambda run_directory: None)
        object.__setattr__(self, "after", after)
        object.__setattr__(self, "given", [])

    def run(self, job):
        self.given.append((job.run_directory.name, job.step))
        result = super().run(job)
        self.after(job)
        return result


def service(storage: Path, runner: Runner | None = None, **options) -> Service:
    return Service(storage, [PROTOCOL], options.pop("selection", Selection()), runner or Watched(), **options)


def committed(run: Path, *steps: int, events: bool = True) -> None:
    """What training spools once it has committed checkpoints; old runs spooled no events of them."""
    spool = Spool(run, "train")
    for step in steps:
        if events:
            spool.checkpoint(step, f"step-{step:08d}-aaaa")
        spool.metrics({"checkpoint/seconds": 0.1, "checkpoint/bytes": 1000.0}, step)
    spool.close()


def outcomes(run: Path) -> dict[int, str]:
    return {result["step"]: result["status"] for result in all_results(run)}


def test_a_schedule_is_kept_in_the_middle_of_a_backlog(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200, 300, 400))
    reports = []

    def after(job):
        reports.append((job.step, len(list(run.glob("reports/*.html")))))
        if job.step == 400:
            make_checkpoint(run, 500)
            polling.scheduled.set()

    polling = service(tmp_path / "runs", Watched(after))
    polling.run_once()
    assert reports == [(400, 0), (500, 0), (300, 1), (200, 1), (100, 1)]


def test_a_run_that_is_always_ahead_does_not_keep_the_others_waiting(tmp_path):
    storage = tmp_path / "runs"
    busy = make_run(storage, "busy", steps=(100,), finished=False)
    make_run(storage, "other", steps=(100, 200))
    runner = Watched(lambda job: job.run_directory == busy and job.step < 400 and make_checkpoint(busy, job.step + 100))
    service(storage, runner).run_once()
    assert runner.given[:4] == [("busy", 100), ("other", 200), ("busy", 200), ("other", 100)]
    assert len(runner.given) == 6


@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("while_it_evaluates", [False, True])
def test_checkpoints_that_came_and_went_unseen_are_recorded_as_skipped(tmp_path, while_it_evaluates, events):
    run = make_run(tmp_path / "runs", steps=(100,), finished=False)
    committed(run, 100, events=events)

    def train_on(job=None):
        if (run / "checkpoints" / "step-00000500-aaaa").exists():
            return
        make_checkpoint(run, 500)
        committed(run, 200, 250, 300, 500, events=events)

    if not while_it_evaluates:
        train_on()
    polling = service(tmp_path / "runs", Watched(train_on), selection=Selection(every_steps=100))
    polling.run_once()
    assert outcomes(run) == {100: "done", 200: "skipped", 300: "skipped", 500: "done"}
    before = sorted(run.glob("evals/*/*.json"))
    skipped = {result["checkpoint"] for result in all_results(run) if result["status"] == "skipped"}
    attempt = "aaaa" if events else "unknown"
    assert skipped == {f"step-00000200-{attempt}", f"step-00000300-{attempt}"}
    service(tmp_path / "runs", selection=Selection(every_steps=100)).run_once()
    assert sorted(run.glob("evals/*/*.json")) == before


def test_a_checkpoint_deleted_after_its_evaluation_is_no_skip(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200), finished=False)
    committed(run, 100, 200)
    service(tmp_path / "runs").run_once()
    remove_directory(run / "checkpoints" / "step-00000100-aaaa")
    service(tmp_path / "runs").run_once()
    assert outcomes(run) == {100: "done", 200: "done"}


def test_one_broken_run_stops_neither_evaluations_nor_reports(tmp_path, caplog):
    storage = tmp_path / "runs"
    run = make_run(storage, steps=(100,))
    copy = storage / "copy"
    shutil.copytree(run, copy)
    shutil.copytree(run, storage / "torn")
    (storage / "torn" / "spool" / "train.jsonl").write_text("not json\n")
    (storage / "bad").mkdir()
    (storage / "bad" / "run.json").write_text('{"run": "x"')
    polling = service(storage)
    polling.scheduled.set()
    for _ in range(2):
        polling.run_once()
    assert outcomes(run) == outcomes(copy) == {100: "done"}
    assert list(run.glob("reports/*.html"))
    [comparison] = (storage / "reports").glob("*.json")
    assert [found["name"] for found in json.loads(comparison.read_text())["runs"]] == ["copy", "run-a", "torn"]
    assert sum("bad" in message for message in caplog.messages) == 1


def test_every_wanted_evaluation_is_named_but_those_of_a_run_that_cannot_be_read(tmp_path, caplog):
    """Its folder of checkpoints is a link that leads to itself, and cannot be listed, as on a broken mount."""
    storage = tmp_path / "runs"
    run = make_run(storage, steps=(100,))
    shutil.copytree(run, storage / "broken")
    shutil.rmtree(storage / "broken" / "checkpoints")
    (storage / "broken" / "checkpoints").symlink_to(storage / "broken" / "checkpoints")
    jobs = service(storage).jobs()
    assert [(job.run_directory.name, job.step) for job in jobs] == [("run-a", 100)]


def test_files_that_cannot_be_read_end_no_service_and_are_named_once(tmp_path, caplog):
    """EIO at one run's run.json, and at another's result."""
    storage = tmp_path / "runs"
    good, _, other = (make_run(storage, name, steps=(100,)) for name in ("good", "no-config", "no-result"))
    [job] = jobs_of_run(other, [PROTOCOL], Selection())
    write_result(job.result_path, made_up_result(job, "blocked", reason="weights: none"))

    def serve() -> bool:
        for path in (storage / "no-config" / "run.json", job.result_path):
            failing_to_open(path, errno.EIO, times=10**6)
        service(storage).run(until_finished=True)
        said = [sum(name in message for message in caplog.messages) for name in ("no-config", "no-result")]
        return outcomes(good) == {100: "done"} and said == [1, 1]

    assert in_child(serve)


def test_a_kill_after_the_result_is_made_good_by_the_next_evaluator(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100,))
    [job] = jobs_of_run(run, [PROTOCOL], Selection())
    service(tmp_path / "runs").run_once()
    for path in (run / "spool").glob("eval-*"):
        path.unlink()
    job.work_folder.mkdir()
    remove_directory(job.checkpoint)
    service(tmp_path / "runs").run_once()
    assert not job.work_folder.exists()
    assert list((run / "spool").glob("eval-*"))


def test_an_idle_service_sends_what_mlflow_did_not_take(tmp_path):
    """MLflow is away during the last evaluation, and comes back while there is nothing to do."""
    run = make_run(tmp_path / "runs", steps=(100,), finished=False)
    now, back = [0.0], threading.Event()

    def upload(directory):
        if not back.is_set():
            return
        write_json_atomic(directory / "spool" / "mlflow.json", {"run_id": "the run's"})
        for path in (directory / "spool").glob("*.jsonl"):
            write_json_atomic(path.with_suffix(".acknowledged.json"), {"bytes": path.stat().st_size})

    polling = service(tmp_path / "runs", Runner(SETTINGS, upload=upload), poll_seconds=0.02)
    polling.uploads.clock = lambda: now[0]
    polling.run_once()
    assert outcomes(run) == {100: "done"}
    assert Uploader(run).pending()
    back.set()
    thread = threading.Thread(target=polling.run)
    thread.start()
    now[0] = 1000.0
    deadline = time.monotonic() + 300
    while Uploader(run).pending() and time.monotonic() < deadline:
        time.sleep(0.02)
    polling.stop.set()
    thread.join()
    assert not Uploader(run).pending()


def test_uploads_are_tried_again_after_pauses_that_grow(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100,))
    now, tries = [0.0], []
    uploads = LateUploads(lambda run: tries.append(now[0]), lambda: now[0])
    for second in range(60):
        now[0] = float(second)
        uploads.send(run)
    assert tries == [0.0, 5.0, 15.0, 35.0]
