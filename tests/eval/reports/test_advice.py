"""What a report says to do next, and what a run took."""

import pytest

from eval.reports.advice import next_steps
from eval.reports.cost import cost_of, format_seconds, format_worker_time

PROTOCOL = {"metric": "frechet_distance", "extractor": "efficientnet_lite0", "num_samples": 512}


def number(step, value, width=1.0, share=0.0, **protocol):
    interval = {"low": value - width, "high": value + width}
    described = {"step": step, "value": value, "interval": interval, "initial_weight_share": share}
    return {**described, "protocol": PROTOCOL | protocol}


def advice(*rows, finished=True, neighbours=None):
    run = {"directory": "/runs/my run", "finished": finished, "neighbours": neighbours}
    best = min(rows, key=lambda row: row["value"], default=None)
    summary = {"last": rows[-1] if rows else None, "best": best, "rows": rows}
    return next_steps(run, summary)


def text(steps):
    return "\n".join(f"{step['text']} {step['command']}" for step in steps)


def test_a_run_without_a_number_is_measured_first():
    assert advice()[0]["command"] == "rayddpm eval run '/runs/my run'"


def test_a_run_that_stopped_early_goes_on_first():
    assert "goes on" in advice(finished=False)[0]["text"]
    assert "not finished" not in text(advice())


@pytest.mark.parametrize(("last", "said"), [(50.0, True), (89.0, False), (120.0, False)])
def test_training_longer_is_said_only_where_the_number_improves_beyond_its_interval(last, said):
    assert ("train longer" in text(advice(number(1, 90.0), number(2, last)))) == said


def test_higher_may_be_better():
    rows = [number(1, 5.0, 0.1, metric="inception_score"), number(2, 9.0, 0.1, metric="inception_score")]
    assert "train longer" in text(advice(*rows))


def test_a_better_checkpoint_before_the_last_is_the_one_to_sample():
    steps = advice(number(100, 20.0), number(200, 40.0))
    assert "Step 100 was better" in text(steps)
    assert "--step 100" in text(steps)
    near = text(advice(number(100, 20.0, width=30), number(200, 40.0, width=30)))
    assert "was better" not in near


def test_averages_that_are_still_the_initialisation_are_named():
    assert "25 %" in text(advice(number(1, 9.0, share=0.25)))
    assert "initialisation" not in text(advice(number(1, 9.0, share=0.001)))


def test_a_protocol_of_the_paper_needs_no_other():
    paper = {"extractor": "inception", "num_samples": 50_000}
    assert "fid_clean_50k" in text(advice(number(1, 9.0)))
    assert "fid_clean_50k" not in text(advice(number(1, 9.0, **paper)))


def test_neighbours_are_looked_for_once():
    assert "neighbours" in text(advice(number(1, 9.0)))
    assert "neighbours" not in text(advice(number(1, 9.0), neighbours={"step": 1}))


def test_each_worker_of_each_part_of_a_training_costs():
    metrics = {
        "train/step_seconds": [(10, 2.0, 0.0), (20, 1.0, 0.0), (25, 1.0, 0.0)],
        "system/num_workers": [(10, 2.0, 0.0), (20, 4.0, 0.0)],
    }
    cost = cost_of(metrics, {"hardware": "4 x GPU"}, {"workers.num_workers": 3}, [{"wall_seconds": 7.0}] * 2)
    assert cost["training_seconds"] == 10 * 2.0 + 10 * 1.0 + 5 * 1.0
    assert cost["worker_seconds"] == 2 * 20.0 + 4 * 10.0 + 3 * 5.0
    assert (cost["evaluation_seconds"], cost["hardware"]) == (14.0, "4 x GPU")


def test_a_run_that_says_nothing_of_its_speed_has_no_cost():
    assert cost_of({}, {}, {}, [])["training_seconds"] is None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(3.21, "3.2 s"), (45, "45 s"), (200, "3 min"), (3600, "1 h"), (5400, "1 h 30 min"), (187_200, "2 d 4 h")],
)
def test_times_read_well(seconds, shown):
    assert format_seconds(seconds) == shown


def test_worker_time_names_what_was_used():
    assert format_worker_time({"worker_seconds": 1800.0, "unit": "worker"}) == "0.5 worker-hours"
    assert format_worker_time({"worker_seconds": 3600 * 1234.0, "unit": "GPU"}) == "1,234 GPU-hours"
