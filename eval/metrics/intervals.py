"""How far a number would move had other samples been drawn: value +- 1.96 standard errors, the reference as given.

Mostly a bootstrap over the sampled images. A resampled Fréchet distance is biased upwards (it repeats images), so the
spread of the replicates is used, not their position. A kernel distance would be biased too, and costs N^2 each time:
its error comes from the influence of each sample (`eval.scores.kernel_distance`).
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from eval.errors import ReportAlive
from eval.metrics.scores import inception_score_resampler, split_ends
from eval.metrics.statistics import FeatureStatistics, covariance_factor

_NORMAL_95 = 1.959963984540054


def frechet_interval(
    features: np.ndarray,
    reference: FeatureStatistics,
    value: float,
    num_replicates: int,
    seed: int,
    report_alive: ReportAlive = lambda: None,
) -> dict[str, Any] | None:
    """95 % interval of a Fréchet distance. features: (N, D) of the samples."""
    if num_replicates < 2:
        return None
    return _bootstrap(
        value, num_replicates, seed, [len(features)], frechet_resampler(features, reference), report_alive
    )


def inception_score_interval(
    probabilities: np.ndarray, value: float, num_replicates: int, seed: int, report_alive: ReportAlive = lambda: None
) -> dict[str, Any] | None:
    """95 % interval of an Inception Score, the mean over its splits. probabilities: (N, classes)."""
    scores = inception_score_resampler(probabilities)
    ends = split_ends(len(probabilities))

    def mean(counts: np.ndarray) -> float:
        return float(scores(counts).mean())

    # Within each split, as each is a set of samples of its own: a split of few images would be left with none.
    return _bootstrap(value, num_replicates, seed, [end - start for start, end in pairwise(ends)], mean, report_alive)


def mean_interval(
    values: np.ndarray, value: float, num_replicates: int, seed: int, report_alive: ReportAlive = lambda: None
) -> dict[str, Any] | None:
    """95 % interval of a mean over images. values: (N,)."""

    def mean(counts: np.ndarray) -> float:
        return float(counts @ values / counts.sum())

    return _bootstrap(value, num_replicates, seed, [len(values)], mean, report_alive)


def normal_interval(value: float, error: float, method: str) -> dict[str, Any]:
    """95 % interval of a number whose standard error is known; method: where that comes from."""
    return {
        "low": value - _NORMAL_95 * error,
        "high": value + _NORMAL_95 * error,
        "level": 0.95,
        "standard_error": error,
        "method": f"{method}, normal approximation",
    }


def _bootstrap(
    value: float,
    num_replicates: int,
    seed: int,
    set_sizes: Sequence[int],
    number: Callable[[np.ndarray], float],
    report_alive: ReportAlive,
) -> dict[str, Any] | None:
    if num_replicates < 2:
        return None
    random = np.random.default_rng([seed, sum(set_sizes)])
    replicates = []
    for _ in range(num_replicates):
        replicates.append(number(np.concatenate([_resample(random, size) for size in set_sizes])))
        report_alive()
    found = normal_interval(value, float(np.std(replicates, ddof=1)), "bootstrap over sampled images")
    return {**found, "num_replicates": num_replicates}


def _resample(random: np.random.Generator, num_images: int) -> np.ndarray:
    """How often each image is drawn in one bootstrap sample: (N,) float64, summing to N."""
    return np.bincount(random.integers(num_images, size=num_images), minlength=num_images).astype(np.float64)


def frechet_resampler(features: np.ndarray, reference: FeatureStatistics) -> Callable[[np.ndarray], float]:
    """A function from resampling counts (N,) to the Fréchet distance of that resample to the reference.

    Everything that does not depend on the counts is done once. Fewer images than the reference has directions: the
    eigenvalues are taken of an (N, N) matrix; more: of an (r, r) one.
    """
    rows = torch.from_numpy(np.asarray(features, np.float64)) - torch.from_numpy(reference.mean)
    projected = rows @ torch.from_numpy(covariance_factor(reference.covariance))
    squares = rows.square().sum(1)
    reference_trace = float(np.trace(reference.covariance))

    def distance(counts: np.ndarray) -> float:
        weights = torch.from_numpy(counts)
        total = weights.sum()
        shift = weights @ rows / total
        trace = (weights @ squares - total * shift.square().sum()) / (total - 1)
        drawn = weights > 0
        # sqrt(count) copies of an image weigh in its outer product as `count` images would.
        centred = projected[drawn] - weights @ projected / total
        scaled = centred * (weights[drawn].sqrt() / (total - 1).sqrt())[:, None]
        few = len(scaled) < scaled.shape[1]
        eigenvalues = torch.linalg.eigvalsh(scaled @ scaled.T if few else scaled.T @ scaled)
        # Centred rows add up to nothing, so the smallest of their Gram matrix is a rounding error: no root of it.
        root = eigenvalues[1 if few else 0 :].clamp(min=0).sqrt().sum()
        return float(shift.square().sum() + trace + reference_trace - 2 * root)

    return distance
