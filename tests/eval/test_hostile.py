"""Files that are not ours, clocks that are off, names that are traps: none stops evaluator, page or report."""

import dataclasses
import json
import os

import pytest

from eval.backlog import Selection, is_due, jobs_of_run
from eval.metrics.reference import ReferenceCache
from eval.protocol import parse_protocol
from eval.reports.curves import Axis, distance_chart
from eval.reports.report import write_report
from eval.results import all_results, grid_path, read_result, result_path, write_result
from eval.service.requests import request_evaluation, requested_jobs
from eval.web.app import linked_file, read_status
from eval.web.page_data import MAX_RUNS, dashboard, render_runs
from tests.support.evaluation import made_up_result, make_checkpoint, make_run

PROTOCOL = parse_protocol("fd_efficientnet_lite0_16")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs", steps=(100,))


@pytest.fixture
def job(run):
    [job] = jobs_of_run(run, [PROTOCOL], Selection())
    return job


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        lambda good: json.dumps({**good, "value": 10**400}),
        lambda good: json.dumps({**good, "value": "1"}),
        lambda good: json.dumps({**good, "interval": {"low": "<script>", "high": 2.0}}),
        lambda good: json.dumps({**good, "interval": [1, 2]}),
        lambda good: json.dumps({**good, "warnings": 3}),
        lambda good: json.dumps({**good, "wall_seconds": "long"}),
        lambda good: json.dumps({**good, "checkpoint": "step-00000100-x/../../../elsewhere"}),
        lambda good: json.dumps({**good, "protocol": {**good["protocol"], "name": "<script>"}}),
        lambda good: json.dumps({**good, "protocol": {**good["protocol"], "metric": "charm"}}),
        lambda good: json.dumps({**good, "time": float("nan")}),
    ],
)
def test_a_result_file_that_does_not_hold_one_of_ours_counts_as_none(run, job, text, tmp_path):
    good = made_up_result(job)
    write_result(job.result_path, good)
    assert read_result(job.result_path) == good
    job.result_path.write_text(text if isinstance(text, str) else text(good))
    assert read_result(job.result_path) is None
    assert list(all_results(run)) == []
    write_report([run], tmp_path / "report.html")
    render_runs(dashboard(run.parent, [PROTOCOL], Selection()))


def test_a_folder_in_a_results_place_counts_as_none(run, job):
    job.result_path.mkdir(parents=True)
    assert read_result(job.result_path) is None
    assert list(all_results(run)) == []


def test_a_result_without_its_costs_is_reported_all_the_same(run, job, tmp_path):
    write_result(job.result_path, made_up_result(job))
    write_report([run], tmp_path / "report.html")
    assert PROTOCOL.name in (tmp_path / "report.html").read_text()
    render_runs(dashboard(run.parent, [PROTOCOL], Selection()))


@pytest.mark.parametrize("time_of_result", [1e9 + 1e7, 1e9 - 60])
def test_a_retry_does_not_wait_for_a_clock_that_was_ahead(time_of_result):
    blocked = {"status": "blocked", "time": time_of_result}
    assert is_due(blocked, retry_seconds=60, now_seconds=1e9)
    assert not is_due(blocked, retry_seconds=60, now_seconds=time_of_result + 59)


def test_foreign_files_among_the_requests_are_left_alone(run):
    storage = run.parent
    request_evaluation(storage, "run-a", PROTOCOL.name)
    folder = storage / "evaluation-requests"
    (folder / "notes.json").write_text('{"mine": 1}')
    (folder / "list.json").write_text("[]")
    (folder / "torn.json").write_text('{"run": ')
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "folder.json").mkdir()
    before = sorted(folder.iterdir())
    assert [asked.step for asked in requested_jobs(storage)] == [100]
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["..", "../outside", "/etc", "."])
def test_a_request_never_leads_out_of_the_storage(run, name):
    storage = run.parent
    request_evaluation(storage, "run-a", PROTOCOL.name)
    [path] = (storage / "evaluation-requests").glob("*.json")
    outside = make_run(storage.parent / "other", "outside", steps=(100,))
    os.rename(outside / "checkpoints", storage.parent / "checkpoints")
    os.rename(outside / "run.json", storage.parent / "run.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "run": name}))
    assert requested_jobs(storage) == []


def test_a_request_outlives_a_run_that_cannot_be_read_for_a_while(run):
    storage = run.parent
    request_evaluation(storage, "run-a", PROTOCOL.name)
    good = (run / "run.json").read_text()
    (run / "run.json").write_text(good[: len(good) // 2])
    assert requested_jobs(storage) == []
    (run / "run.json").write_text(good)
    assert [asked.step for asked in requested_jobs(storage)] == [100]


@pytest.mark.parametrize(
    "name", ["$x$ and $\\frac", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}"]
)
def test_a_runs_name_is_text_in_every_page(tmp_path, name):
    name = name.replace("/", "")  # no folder has a slash in its name
    runs = [make_run(tmp_path / "runs", name, steps=(100, 200)), make_run(tmp_path / "runs", "other", steps=(100, 200))]
    for run in runs:
        for job in jobs_of_run(run, [PROTOCOL], Selection()):
            write_result(job.result_path, made_up_result(job, reason=name, warnings=[name]))
    (runs[0] / "reports").mkdir()
    (runs[0] / "reports" / f"{name}.html").write_text("")
    data = write_report(runs, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text() + render_runs(dashboard(tmp_path / "runs", [PROTOCOL], Selection()))
    assert len(data["runs"]) == 2
    for trap in ("<script>alert", "<img src=x", ">49<"):
        assert trap not in html


def test_mathematics_in_a_name_is_drawn_as_it_is_written():
    points = [(1.0, 2.0, 1.0, 3.0), (2.0, 1.0, 0.5, 1.5)]
    names = ("$x^2$", "$\\frac")
    svg = distance_chart(dict.fromkeys(names, points), Axis("step"), "distance", dict.fromkeys(names, "#000000"))
    assert all(name in svg for name in names)


def test_the_page_serves_nothing_that_a_link_points_to_elsewhere(run, job, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    grid = grid_path(run, job.checkpoint.name, job.protocol)
    grid.parent.mkdir(parents=True, exist_ok=True)
    grid.symlink_to(secret)
    (run / "reports").mkdir()
    (run / "reports" / "20260101-000000.html").symlink_to(secret)
    names = [str(path.relative_to(run.parent)) for path in (grid, run / "reports" / "20260101-000000.html")]
    assert [linked_file(run.parent, name) for name in names] == [None, None]
    grid.unlink()
    grid.write_bytes(b"")
    assert linked_file(run.parent, names[0]) == grid.resolve()


@pytest.mark.parametrize(
    "place",
    [
        "../secret.html",
        "reports/../../secret.html",
        "run-a/evals/../../../secret.grid.png",
        "run-a/evals/step-00000100-aaaa/../../../../secret.grid.png",
        "../reports/secret.html",
        "no-run/reports/secret.html",
        "run-a/run.json",
        "run-a/reports/sub/secret.html",
        "run-a/reports/secret.json",
        "/etc/reports/secret.html",
        "",
        "..",
        "run-a/reports/\0.html",
        f"run-a/reports/{'x' * 5000}.html",
        "run-a/reports/folder.html",
        "run-a/reports/circle.html",
    ],
)
def test_the_page_serves_nothing_but_reports_and_grids(run, tmp_path, place):
    for folder in (tmp_path, tmp_path / "reports", run / "reports" / "sub", run.parent / "no-run" / "reports"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("secret.html", "secret.json", "secret.grid.png"):
            (folder / name).write_text("secret")
    (run / "reports" / "folder.html").mkdir()
    (run / "reports" / "circle.html").symlink_to(run / "reports" / "circle.html")
    (run / "reports" / "known.html").write_text("")
    assert linked_file(run.parent, place) is None
    assert linked_file(run.parent, "run-a/reports/known.html") == (run / "reports" / "known.html").resolve()


def test_one_run_that_cannot_be_read_takes_no_other_off_the_page(run):
    other = make_run(run.parent, "other", steps=(100,))
    (other / "checkpoints").rename(other / "away")
    (other / "checkpoints").symlink_to(other / "checkpoints")  # ELOOP
    found = read_status(run.parent, [PROTOCOL], Selection())
    assert [queue["run"] for queue in found["runs"]][-1] == "run-a"


def test_of_a_thousand_runs_the_newest_are_drawn_and_the_others_named(tmp_path):
    storage = tmp_path / "runs"
    first = make_run(storage, "run-000", steps=(100,))
    described = json.loads((first / "run.json").read_text())
    for number in range(1, MAX_RUNS + 5):
        folder = storage / f"run-{number:03d}"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(described))
        os.utime(folder / "run.json", (2e9 + number, 2e9 + number))
    data = dashboard(storage, [PROTOCOL], Selection())
    assert [run["name"] for run in data["runs"]] == [f"run-{n:03d}" for n in range(MAX_RUNS + 4, 4, -1)]
    assert data["older_runs"] == [f"run-{number:03d}" for number in range(4, -1, -1)]
    assert "run-000" in render_runs(data)


def test_published_statistics_are_of_one_number_of_images(tmp_path):
    import numpy as np

    np.savez(tmp_path / "published.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    cache = ReferenceCache(tmp_path / "cache")
    bound = cache.import_npz(tmp_path / "published.npz", PROTOCOL, 50_000)
    assert cache.import_npz(tmp_path / "published.npz", PROTOCOL, 50_000) == bound
    with pytest.raises(ValueError, match="imported as made of 50000"):
        cache.import_npz(tmp_path / "published.npz", PROTOCOL, 10_000)


def test_what_a_killed_evaluator_left_half_written_in_the_cache_is_removed(tmp_path):
    import numpy as np

    np.savez(tmp_path / "published.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    cache = ReferenceCache(tmp_path / "cache")
    path = cache._path(cache.import_npz(tmp_path / "published.npz", PROTOCOL, 100), "statistics")
    old, new = (path.with_name(f".tmp-{digit * 32}-{path.name}") for digit in "ab")
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    cache.import_npz(tmp_path / "published.npz", PROTOCOL, 100)
    assert sorted(found.name for found in path.parent.iterdir()) == sorted([new.name, path.name])


@pytest.mark.parametrize(
    "change",
    [
        {"extractor_sha256": "ab" * 32},
        {"precision": "bfloat16"},
        {"reference_digest": "b" * 64},
        {"version": 7},
        {"extractor": "inception", "resize": "clean"},
        {"extractor": "inception", "resize": "legacy_tensorflow"},
    ],
)
def test_everything_that_changes_the_reference_is_in_its_files_name(tmp_path, change):
    cache, bound = ReferenceCache(tmp_path), PROTOCOL.bind("a" * 64)
    other = dataclasses.replace(bound, **change)
    assert cache._path(bound, "statistics") != cache._path(other, "statistics")
    assert cache._path(bound, "statistics") != cache._path(bound, "features")


def test_a_result_of_another_checkpoint_is_not_this_ones(run, job):
    elsewhere = result_path(run, "step-00000100-bbbb", job.protocol)
    write_result(elsewhere, made_up_result(job))
    assert read_result(elsewhere) is None


def test_results_come_in_the_order_of_their_steps_beyond_eight_digits(tmp_path):
    run = make_run(tmp_path / "runs", steps=(1,))
    for step in (20_000_000, 100_000_000, 3_000_000_000):
        make_checkpoint(run, step)
    for job in jobs_of_run(run, [PROTOCOL], Selection()):
        write_result(job.result_path, made_up_result(job, "done"))
    assert [result["step"] for result in all_results(run)] == [1, 20_000_000, 100_000_000, 3_000_000_000]
