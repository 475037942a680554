"""Metrics: what a number is called, which way is better, what it needs, how it is computed. `METRICS` is the one table.

A new one takes a file with its mathematics, and a scorer and an entry here. What computes is imported when it scores,
so that the command line reads the table at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eval.errors import ReportAlive

if TYPE_CHECKING:
    import numpy as np

    from eval.metrics.statistics import FeatureStatistics


@dataclass(frozen=True)
class Scoring:
    """What a number is computed from. N images were sampled, or for bits per dimension scored."""

    rows: "np.ndarray"
    """(N, D) float32: features, class probabilities, or with D = 1 the bits per dimension (float64)."""
    seed: int
    """Of the protocol; subsets and resamples are drawn by it."""
    num_replicates: int
    """Bootstrap replicates behind the interval; 0: no interval."""
    rows_at_once: int
    """How many rows are added to running statistics at a time."""
    reference_statistics: "Callable[[], FeatureStatistics]"
    """Of every reference image."""
    reference_features: "Callable[[], np.ndarray]"
    """(M, D) float32 of reference images one by one."""
    report_alive: ReportAlive


@dataclass(frozen=True)
class Metric:
    """What there is to know of a metric."""

    title: str
    """For people, as on an axis."""
    prefix: str
    """How a protocol's name begins, such as fd in fd_efficientnet_lite0_5k."""
    score: Callable[[Scoring], dict[str, Any]]
    """Gives a result's `value`, `values`, `interval`, `warnings` and, with a reference, `num_reference_images`."""
    lower_is_better: bool
    published_prefix: str = ""
    """The same through the published Inception network, such as fid; the prefix itself if not given."""
    looks_at: Literal["features", "probabilities", "data"] = "features"
    """Of samples their features or class probabilities; or images of the data set, which the model itself scores."""
    parts: tuple[str, ...] = ()
    """Of a metric with two sides, the `values` that are shown and logged one by one; the first is its `value`."""
    min_images: int = 2
    """The smallest N."""
    seed_end: int | None = None
    """Seeds are below this."""
    uses_statistics: bool = False
    """Whether published statistics (mean and covariance) serve as its reference."""
    version: int = 1
    """Raised whenever a change of code changes the number."""
    few_images_effect: str = ""
    """What fewer images than another number was made of do to it."""
    paper_lacks: str = ""
    """What the DDPM paper gives none of; empty if it gives this metric."""


def _frechet_distance(given: Scoring) -> dict[str, Any]:
    from eval.metrics.intervals import frechet_interval
    from eval.metrics.statistics import FeatureStatistics, small_sample_warnings, statistics_distance

    reference = given.reference_statistics()
    sampled = FeatureStatistics.empty(given.rows.shape[1])
    for start in range(0, len(given.rows), given.rows_at_once):
        sampled.update(given.rows[start : start + given.rows_at_once])
    value = statistics_distance(sampled, reference)
    given.report_alive()
    interval = frechet_interval(given.rows, reference, value, given.num_replicates, given.seed, given.report_alive)
    warnings = small_sample_warnings(sampled, reference)
    return _numbers({"distance": value}, interval) | {"num_reference_images": reference.count, "warnings": warnings}


def _kernel_distance(given: Scoring) -> dict[str, Any]:
    from eval.metrics.intervals import normal_interval
    from eval.metrics.scores import kernel_distance

    reference = given.reference_features()
    value, deviation, error = kernel_distance(reference, given.rows, given.seed, report_alive=given.report_alive)
    interval = normal_interval(value, error, "influence of each sampled image") if given.num_replicates else None
    numbers = _numbers({"distance": value, "deviation_over_subsets": deviation}, interval)
    return numbers | {"num_reference_images": len(reference)}


def _inception_score(given: Scoring) -> dict[str, Any]:
    from eval.metrics.intervals import inception_score_interval
    from eval.metrics.scores import inception_score

    value, deviation = inception_score(given.rows)
    interval = inception_score_interval(given.rows, value, given.num_replicates, given.seed, given.report_alive)
    return _numbers({"score": value, "deviation_over_splits": deviation}, interval)


def _precision_recall(given: Scoring) -> dict[str, Any]:
    from eval.metrics.intervals import mean_interval
    from eval.metrics.scores import coverage

    reference = given.reference_features()
    covered, recalled = coverage(reference, given.rows, report_alive=given.report_alive)
    value = float(covered.mean())
    interval = mean_interval(covered, value, given.num_replicates, given.seed, given.report_alive)
    numbers = _numbers({"precision": value, "recall": float(recalled.mean())}, interval)
    return numbers | {"num_reference_images": len(reference)}


def _bits_per_dim(given: Scoring) -> dict[str, Any]:
    from eval.metrics.intervals import mean_interval

    bits = given.rows[:, 0]
    value = float(bits.mean())
    interval = mean_interval(bits, value, given.num_replicates, given.seed, given.report_alive)
    return _numbers({"bits_per_dim": value}, interval)


def _numbers(values: dict[str, float], interval: dict[str, Any] | None) -> dict[str, Any]:
    """The first of the values is the number, and the one the interval belongs to."""
    return {"value": next(iter(values.values())), "values": values, "interval": interval, "warnings": []}


METRICS = {
    "frechet_distance": Metric(
        "Fréchet distance",
        "fd",
        _frechet_distance,
        lower_is_better=True,
        published_prefix="fid",
        uses_statistics=True,
        few_images_effect="fewer give a larger distance",
    ),
    "kernel_distance": Metric(
        "Kernel distance",
        "kd",
        _kernel_distance,
        lower_is_better=True,
        published_prefix="kid",
        seed_end=2**32,  # numpy.random.seed, by which clean-fid draws the subsets, takes 32 bits
        paper_lacks="kernel distance",
    ),
    "inception_score": Metric(
        "Inception Score",
        "is",
        _inception_score,
        lower_is_better=False,
        looks_at="probabilities",
        min_images=10,  # its splits
        version=2,  # 2 splits the images as the published code does
        few_images_effect="fewer give a smaller Inception Score",
    ),
    "precision_recall": Metric(
        "Precision",
        "pr",
        _precision_recall,
        lower_is_better=False,
        parts=("precision", "recall"),
        min_images=4,  # each and its 3 neighbours
        paper_lacks="precision or recall",
    ),
    "bits_per_dim": Metric("Bits per dimension", "bits_per_dim", _bits_per_dim, lower_is_better=True, looks_at="data"),
}
"""As in a protocol's `metric` -> the metric."""
