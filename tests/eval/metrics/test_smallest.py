"""The fewest images, the fewest steps, features that do not vary: every number is finite, and inside its interval."""

import math

import numpy as np
import pytest

from eval.metrics.metric import METRICS, Scoring
from eval.metrics.statistics import FeatureStatistics
from eval.protocol import parse_protocol
from tests.support.evaluation import job_of, make_run, runner

KINDS = ("varied", "constant", "constant in all but one", "equal to the reference")


def rows_of(metric: str, kind: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples and reference, (N, 6) float32; rows of probabilities where the metric looks at them."""
    random = np.random.default_rng(0)
    reference, rows = random.random((5, 6), np.float32), random.random((count, 6), np.float32)
    if kind != "varied":
        rows[:] = rows[0]
    if kind == "constant in all but one":
        rows[-1, 0] += 1
    if kind == "equal to the reference":
        rows[:] = reference[np.arange(count) % 5]
    if METRICS[metric].looks_at == "probabilities":
        rows /= rows.sum(1, keepdims=True)
    return rows, reference


@pytest.mark.parametrize("num_replicates", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_the_fewest_images_and_features_that_do_not_vary_give_a_finite_number(metric, kind, num_replicates):
    rows, reference = rows_of(metric, kind, METRICS[metric].min_images)
    statistics = FeatureStatistics.of(reference)
    scoring = Scoring(rows, 0, num_replicates, 1, lambda: statistics, lambda: reference, lambda: None)
    numbers = METRICS[metric].score(scoring)
    assert all(math.isfinite(value) for value in numbers["values"].values())
    assert numbers["value"] == next(iter(numbers["values"].values()))
    assert set(METRICS[metric].parts) <= numbers["values"].keys()
    if num_replicates == 0:
        assert numbers["interval"] is None
    if numbers["interval"] is not None:
        assert numbers["interval"]["low"] <= numbers["value"] <= numbers["interval"]["high"]


@pytest.mark.parametrize(
    "name",
    [
        "fd_efficientnet_lite0_2_ddim1",
        "kd_efficientnet_lite0_2_ddpm1",
        "pr_efficientnet_lite0_4_dpmsolver1",
        "is_efficientnet_lite0_10_ddim1_eta1",
        "bits_per_dim_2",
    ],
)
def test_an_evaluation_of_the_fewest_images_in_one_step_ends_in_a_number(tmp_path, name):
    run = make_run(tmp_path / "runs", steps=(100,))
    result = runner().run(job_of(run, parse_protocol(name)))
    assert result["status"] == "done", result["reason"]
    assert math.isfinite(result["value"])
