"""The page and the report for everybody: axe-core finds nothing, in light and dark; on a phone nothing sticks out."""

import json

import pytest

from common.files import read_json
from eval.reports.report import write_report
from eval.results import grid_path, write_result
from eval.sampling.grids import write_real_grid
from tests.eval.web.browser import Browser
from tests.eval.web.test_page import page, service
from tests.support.evaluation import made_up_result, make_run

pytestmark = [pytest.mark.heavy, pytest.mark.needs("chromium")]


@pytest.fixture
def storage(tmp_path):
    """Two runs: one with numbers, pictures, a failure; one without."""
    storage = tmp_path / "runs"
    run = make_run(storage, steps=(1000, 2000, 3000, 4000))
    make_run(storage, "a-run-with-a-very-long-name-" + "x" * 40, steps=(1000,), finished=False)
    write_real_grid(run)
    for number, job in enumerate(job for job in service(storage).jobs() if job.run_directory == run):
        if job.step == 1000:
            write_result(job.result_path, made_up_result(job, "failed", attempts=3, reason="out of memory"))
            continue
        interval = {"low": 10.0 + number, "high": 14.0 + number, "level": 0.95, "standard_error": 1.0}
        write_result(
            job.result_path, made_up_result(job, value=12.0 + number, interval=interval, warnings=["few images"])
        )
        grid_path(run, job.checkpoint.name, job.protocol).write_bytes((run / "evals" / "real.png").read_bytes())
    return storage


def look(browser, path):
    """What axe-core finds at the widths and in the colours that people have, and how far anything sticks out."""
    found = []
    for width, dark in ((1280, False), (1280, True), (420, False), (420, True)):
        browser.shows(width, dark=dark)
        found += [f"{width} px, {'dark' if dark else 'light'}: {violation}" for violation in browser.violations()]
        if (reached := browser.run("document.documentElement.scrollWidth")) > width:
            found.append(f"{width} px: it is {reached} px wide")
    (path / "violations.json").write_text(json.dumps(found, indent=1))
    return found


def test_a_report_can_be_used_by_everybody(storage, tmp_path):
    for name, runs in (("one", [storage / "run-a"]), ("both", sorted(storage.glob("*run*")))):
        write_report(runs, tmp_path / f"{name}.html")
        browser = Browser((tmp_path / f"{name}.html").as_uri(), tmp_path / f"profile-{name}")
        try:
            browser.wait_for("document.querySelectorAll('svg').length > 0")
            assert look(browser, tmp_path) == []
        finally:
            browser.close()
    assert len(read_json(tmp_path / "both.json")["runs"]) == 2


def test_the_page_can_be_used_by_everybody(storage, tmp_path):
    with page(storage) as url:
        browser = Browser(url, tmp_path / "profile")
        try:
            browser.wait_for("document.querySelectorAll('svg').length > 0")
            assert look(browser, tmp_path) == []
        finally:
            browser.close()
