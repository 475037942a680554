"""What the page costs, counted in files opened and folders listed: many runs, and runs of many checkpoints."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cluster.run_directory import CHECKPOINTS, RUN
from cluster.storage import COMPLETE
from eval.backlog import Selection, jobs_of_run
from eval.protocol import parse_protocol
from eval.results import grid_path, write_result
from eval.web.app import linked_file, read_status
from eval.web.page_data import MAX_RUNS, dashboard, render_runs
from tests.support.evaluation import made_up_result, make_run
from tests.support.failures.stalls import in_child

PROTOCOL = parse_protocol("fd_efficientnet_lite0_16")


def show_page(storage: Path) -> None:
    """All that a browser asks for: the page, the queue, and the pictures."""
    data = dashboard(storage, [PROTOCOL], Selection())
    render_runs(data)
    read_status(storage, [PROTOCOL], Selection())
    for run in data["runs"]:
        for grid in run["grids"]:
            assert linked_file(storage, grid["place"]) is not None


def count(act: Callable[[], None], counted: Path) -> int:
    """How many files and folders `act` opens when it is called for the second time."""

    def counting() -> bool:
        act()  # fonts, templates and libraries are read once
        seen = 0

        def hook(event: str, arguments: object) -> None:
            nonlocal seen
            seen += event in ("open", "os.scandir", "os.listdir")

        sys.addaudithook(hook)
        act()
        counted.write_text(str(seen))
        return True

    assert in_child(counting)
    return int(counted.read_text())


def add_checkpoint(run: Path, step: int) -> None:
    """One that the page sees, with a result and a grid; nothing else is in it."""
    (run / CHECKPOINTS / f"step-{step:08d}-aaaa").mkdir(parents=True)
    (run / CHECKPOINTS / f"step-{step:08d}-aaaa" / COMPLETE).write_text("{}")
    job = jobs_of_run(run, [PROTOCOL], Selection())[0]
    write_result(job.result_path, made_up_result(job))
    grid_path(run, job.checkpoint.name, job.protocol).write_bytes(b"")


def test_a_thousand_runs_cost_the_page_no_more_than_those_it_draws(tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    described = json.loads((make_run(storage, "run-0000", steps=(100,)) / RUN).read_text())

    def add(numbers: range) -> None:
        """Runs with a checkpoint each; the first are the newest."""
        for number in numbers:
            run = storage / f"run-{number:04d}"
            run.mkdir()
            (run / RUN).write_text(json.dumps(described))
            (run / CHECKPOINTS / "step-00000100-aaaa").mkdir(parents=True)
            (run / CHECKPOINTS / "step-00000100-aaaa" / COMPLETE).write_text("{}")
            os.utime(run / RUN, (2e9 - number, 2e9 - number))

    add(range(1, MAX_RUNS + 1))
    few = count(lambda: show_page(storage), tmp_path / "count")
    add(range(MAX_RUNS + 1, 1000))
    assert count(lambda: show_page(storage), tmp_path / "count") == few
    assert len(dashboard(storage, [PROTOCOL], Selection())["older_runs"]) == 1000 - MAX_RUNS
    [oldest] = read_status(storage, [PROTOCOL], Selection(), "run-0999")["runs"]
    assert [job["step"] for job in oldest["queue"]] == [100]


def test_the_page_reads_each_checkpoint_equally_often_however_many_there_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", steps=(1,))
    counts = []
    for steps in (range(10, 30), range(30, 50), range(50, 70)):
        for step in steps:
            add_checkpoint(run, step)
        counts.append(count(lambda: show_page(run.parent), tmp_path / "count"))
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0
