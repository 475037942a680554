"""Reports: self-contained, from the run directory alone, unlike protocols apart, nothing left unsaid."""

import base64
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest

from eval.protocol import parse_protocol
from eval.reports.curves import COLOURS, Axis, distance_chart, format_value, loss_chart, smooth, time_axis
from eval.reports.report import style, write_report
from eval.reports.report_data import collect, flat_config, thin
from eval.results import grid_path, result_path, write_result
from eval.service.runner import metric_values
from tests.support.evaluation import make_run

FD, KD = parse_protocol("fd_efficientnet_lite0_512"), parse_protocol("kd_efficientnet_lite0_512")


def add_result(run, step, value, protocol=FD, status="done", **extra):
    digest = json.loads((run / "run.json").read_text())["manifest_digest"]
    bound = protocol.bind(digest)
    checkpoint = f"step-{step:08d}-aaaa"
    result = {
        "status": status,
        "checkpoint": checkpoint,
        "step": step,
        "protocol": bound.describe(),
        "value": value,
        "values": {"distance": value},
        "interval": {"low": value - 1, "high": value + 1, "level": 0.95, "standard_error": 0.5},
        "provenance": {"ema": {"initial_weight_share": 0.25}},
        "versions": {"torch": "9.9"},
        "warnings": [],
        "wall_seconds": 12.0,
        "images_per_second": 50.0,
        "device": "cpu",
        **extra,
    }
    write_result(result_path(run, checkpoint, bound), result)
    return bound, checkpoint


def add_grid(run, bound, checkpoint):
    import torch

    from common.pictures import write_png
    from eval.sampling.grids import sample_grid

    write_png(grid_path(run, checkpoint, bound), sample_grid(torch.zeros(64, 1, 8, 8, dtype=torch.uint8)))


@pytest.fixture
def run(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100, 200))
    for step, value in ((100, 90.0), (200, 30.0)):
        add_grid(run, *add_result(run, step, value))
    add_result(run, 200, 0.01, KD)
    bound = parse_protocol("fid_clean_10k").bind("x")
    checkpoint = "step-00000200-aaaa"
    blocked = {"status": "blocked", "reason": "weights: <file> is missing", "checkpoint": checkpoint, "step": 200}
    write_result(result_path(run, checkpoint, bound), blocked | {"protocol": bound.describe()})
    return run


class Outside(HTMLParser):
    """Everything a browser would fetch from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.open = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data") and not value.startswith(("data:", "#")):
                self.found.append((tag, value))


def test_a_report_is_one_file_that_fetches_nothing(run, tmp_path):
    write_report([run], tmp_path / "out" / "report.html")
    html = (tmp_path / "out" / "report.html").read_text()
    parser = Outside()
    parser.feed(html)
    assert parser.found == []
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert "<script" not in html


def test_it_says_what_a_reader_asks(run, tmp_path):
    write_report([run], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    digest = json.loads((run / "run.json").read_text())["manifest_digest"]
    for said in (
        "Fréchet distance 30 (29 to 31) at step 200, from 90 at step 100",
        digest,
        "25.0 %",
        "model.base_channels",
        "fd_efficientnet_lite0_512",
        FD.extractor_sha256,
        "torch 9.9",
        "What was not evaluated, and why",
        "weights: &lt;file&gt; is missing",
    ):
        assert said in text, said
    # Distance over steps, images and time; loss. For a phone those over steps and the loss once more.
    assert Counter(re.findall(r'<svg role="img" class="(\w+)"', html)) == {"wide": 2, "narrow": 2, "half": 2}
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(images) == 4  # real ones beside the newest samples; samples over time
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)


def test_unlike_protocols_never_share_a_table_or_a_curve(run, tmp_path):
    data = write_report([run], tmp_path / "report.html")
    assert [protocol["name"] for protocol in data["protocols"]] == [FD.name, KD.name]
    html = (tmp_path / "report.html").read_text()
    sections = re.findall(r"<h2>[^<]*: <code>([^<]+)</code></h2>(.*?)</section>", html, re.DOTALL)
    rows = {name: len(re.findall(r"<code>step-", body)) for name, body in sections}
    assert rows == {FD.name: 2, KD.name: 1}


def test_runs_on_other_data_are_not_put_into_one_curve(tmp_path):
    one = make_run(tmp_path / "a" / "runs", "one", steps=(100,))
    other = make_run(tmp_path / "b" / "runs", "other", steps=(100,))
    described = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(described | {"manifest_digest": "d" * 64}))
    add_result(one, 100, 10.0)
    add_result(other, 100, 20.0)
    data = write_report([one, other], tmp_path / "report.html")
    assert len(data["protocols"]) == 2
    assert len({protocol["digest"] for protocol in data["protocols"]}) == 2


def test_a_comparison_shows_both_runs_and_what_differs(run, tmp_path):
    other = make_run(tmp_path / "runs", "run-b", steps=(100, 200))
    described = json.loads((other / "run.json").read_text())
    described["config"]["train"]["seed"] = 7
    (other / "run.json").write_text(json.dumps(described))
    for step, value in ((100, 80.0), (200, 20.0)):
        add_result(other, step, value)
    data = write_report([run, other], tmp_path / "report.html")
    assert data["config_differences"] == [{"setting": "train.seed", "values": [0, 7]}]
    html = (tmp_path / "report.html").read_text()
    assert "comparison of 2 runs" in html
    assert "<code>train.seed</code>" in html
    with pytest.raises(ValueError, match="run-a"):
        write_report([run, run], tmp_path / "report.html")


def test_the_json_beside_it_holds_the_same_numbers(run, tmp_path):
    write_report([run], tmp_path / "report.html")
    data = json.loads((tmp_path / "report.json").read_text())
    values = [e["value"] for e in data["runs"][0]["evaluations"] if e["protocol"]["name"] == FD.name]
    assert values == [90.0, 30.0]
    assert data["runs"][0]["evaluations"][0]["num_images_seen"] == 100 * 32


def test_a_report_needs_neither_data_nor_checkpoints_nor_mlflow(run, tmp_path):
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(run / "checkpoints")
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(described | {"tracking_uri": "http://127.0.0.1:9"}))
    write_report([run], tmp_path / "report.html")
    assert "Fréchet distance" in (tmp_path / "report.html").read_text()


def test_a_run_without_any_number_still_has_a_report(tmp_path):
    run = make_run(tmp_path / "runs", steps=(100,))
    write_report([run], tmp_path / "report.html")
    assert "No checkpoint has been evaluated yet" in (tmp_path / "report.html").read_text()


def test_a_diverged_loss_is_valid_json_and_leaves_the_chart_standing(tmp_path):
    from cluster.tracking.uploader import Spool

    run = make_run(tmp_path / "runs", steps=(100,))
    spool = Spool(run, "train")
    spool.metrics({"train/loss": float("nan")}, 110)
    spool.close()
    write_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["runs"][0]["curves"]["train/loss"][-1][1] is None
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_curves_are_thinned_evenly_and_keep_their_end():
    points = [(step, 1.0, 0.0) for step in range(100_000)]
    kept = thin(points)
    assert len(kept) <= 2000
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thin(points[:10]) == points[:10]


def test_smoothing_starts_without_bias_and_keeps_a_constant():
    assert smooth([3.0] * 200) == pytest.approx([3.0] * 200)
    assert smooth([5.0, 1.0])[0] == 5.0


def test_charts_are_plain_svg_and_the_same_each_time():
    series = {"a": [(1, 5.0, 4.0, 6.0), (2, 3.0, 2.5, 3.5)]}
    chart = distance_chart(series, Axis("step"), "distance", {"a": "#0072B2"})
    assert chart.startswith("<svg")
    assert chart == distance_chart(series, Axis("step"), "distance", {"a": "#0072B2"})
    assert loss_chart({"a": [(1, 1.0), (2, float("inf"))]}, {"a": "#0072B2"}).startswith("<svg")


@pytest.mark.parametrize(("lower_is_better", "named"), [(True, "3"), (False, "9")])
def test_a_chart_names_its_best_and_its_last_value(lower_is_better, named):
    series = {"a": [(1, 9.0, 9.0, 9.0), (2, 3.0, 3.0, 3.0), (3, 5.0, 5.0, 5.0)]}
    chart = distance_chart(series, Axis("step"), "score", {"a": "#0072B2"}, lower_is_better=lower_is_better)
    values = re.findall(r"font-size: 9px[^>]*>(\d+)</text>", chart)
    assert sorted(values) == sorted([named, "5"])


def ticks(svg, axis):
    """The numbers along an axis of a chart."""
    place = {"x": "middle", "y": "end"}[axis]
    return [float(text) for text in re.findall(rf"text-anchor: {place}[^>]*>([\d.]+)</text>", svg)]


def test_steps_are_whole_numbers_and_the_other_axis_need_not_hold_nought():
    series = {"a": [(step, value, value - 1, value + 1) for step, value in ((10, 100.0), (12, 98.0), (13, 97.0))]}
    svg = distance_chart(series, Axis("step"), "distance", {"a": "#0072B2"}, "half")
    assert len(ticks(svg, "x")) >= 2
    assert all(step == int(step) for step in ticks(svg, "x"))
    assert len(ticks(svg, "y")) >= 2
    assert min(ticks(svg, "y")) > 90


@pytest.mark.parametrize(
    ("longest_seconds", "unit", "shown"),
    [(0.2, "seconds", 0.2), (119, "seconds", 119), (1800, "minutes", 30), (9000, "hours", 2.5), (864_000, "days", 10)],
)
def test_times_are_in_the_unit_that_fits_the_longest(longest_seconds, unit, shown):
    axis, seconds = time_axis(longest_seconds)
    assert axis.label.startswith(unit)
    assert longest_seconds / seconds == pytest.approx(shown)


def test_a_chart_says_in_words_what_it_shows():
    series = {"<a>": [(1, 9.0, 9.0, 9.0), (2, 3.0, 3.0, 3.0), (3, 5.0, 5.0, 5.0)]}
    svg = distance_chart(series, Axis("step"), "distance", {"<a>": "#0072B2"})
    assert "<title>distance over step</title>" in svg
    assert "<desc>&lt;a&gt;: first 9 at step 1, best 3 at step 2, last 5 at step 3</desc>" in svg


def test_colours_of_a_chart_are_those_of_the_page():
    series = {name: [(1, 9.0, 8.0, 10.0), (2, 3.0, 2.0, 4.0)] for name in "ab"}
    svg = distance_chart(series, Axis("step"), "distance", dict(zip("ab", COLOURS, strict=False)))
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    used = set(re.findall(r"var\(--([\w-]+)\)", svg))
    assert used == {"ink", "grid", "series-0", "series-1"}
    assert all(f"--{name}:" in style() for name in used)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (41.26, "41.3"), (0.01234, "0.0123"), (0.0, "0"), (1e-6, "1.00e-06")]
)
def test_numbers_read_well(value, text):
    assert format_value(value) == text


def test_metric_names_carry_the_protocol(run):
    done = next(e for e in collect([run])["runs"][0]["evaluations"] if e["protocol"]["name"] == FD.name)
    assert metric_values(done) == {f"eval/{FD.name}": 90.0, f"eval/{FD.name}/standard_error": 0.5}


def test_no_password_of_an_address_is_in_a_report() -> None:
    config = {"run": {"tracking_uri": "https://me:secret@host/"}, "data": {"path": "https://me:secret@host/set"}}
    assert flat_config(config) == {"run.tracking_uri": "https://***@host/", "data.path": "https://***@host/set"}
