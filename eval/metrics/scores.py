"""Metrics on features other than the Fréchet distance: kernel distance, Inception Score, precision and recall.

All in float64, all seeded: the same features give the same number. `report_alive` is called now and then; it may raise.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from eval.errors import ReportAlive

_ROWS_AT_ONCE = 1024


def kernel_distance(
    reference: np.ndarray,
    sampled: np.ndarray,
    seed: int = 0,
    num_subsets: int = 100,
    max_subset_size: int = 1000,
    report_alive: ReportAlive = lambda: None,
) -> tuple[float, float, float]:
    """Unbiased squared MMD under the kernel (x.y / D + 1)^3, averaged over random subsets (KID, Binkowski et al. 2018).

    reference: (N, D), sampled: (M, D). Returns (mean, standard deviation over subsets, standard error). Subsets are
    those clean-fid's kernel_distance(reference, sampled) draws after numpy.random.seed(seed). May be slightly negative:
    it is unbiased. The deviation over subsets is not an error of the mean: subsets of one set of samples overlap. The
    error is that of a U-statistic, 4 Var(h) / M for the influence h of a sample (its mean kernel with the other samples
    less that with the reference), and of the choice of subsets.
    """
    size = min(len(reference), len(sampled), max_subset_size)
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 images on each side, there are {size}")
    random = np.random.RandomState(seed)
    estimates = []
    influences, times_drawn = np.zeros(len(sampled)), np.zeros(len(sampled))
    for _ in range(num_subsets):
        # Sampled first: the order in which clean-fid consumes its random numbers.
        drawn = random.choice(len(sampled), size, replace=False)
        x, y = _rows(sampled, drawn), _rows(reference, random.choice(len(reference), size, replace=False))
        among_x, among_y, across = _kernel(x, x), _kernel(y, y), _kernel(x, y)
        within = _sum_off_diagonal(among_x) + _sum_off_diagonal(among_y)
        estimates.append(within / (size * (size - 1)) - 2 * float(across.sum()) / size**2)
        influences[drawn] += ((among_x.sum(1) - among_x.diagonal()) / (size - 1) - across.mean(1)).numpy()
        times_drawn[drawn] += 1
        report_alive()
    seen = times_drawn > 0
    of_samples = 4 * float(np.var(influences[seen] / times_drawn[seen], ddof=1)) / len(sampled)
    error = (of_samples + float(np.var(estimates)) / num_subsets) ** 0.5
    return float(np.mean(estimates)), float(np.std(estimates)), error


def _rows(features: np.ndarray, chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(features[chosen], np.float64))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _sum_off_diagonal(kernel: Tensor) -> float:
    return float(kernel.sum() - kernel.diagonal().sum())


def inception_score(probabilities: np.ndarray, num_splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))), mean and standard deviation over splits of the images (Salimans et al. 2016).

    probabilities: (N, classes), rows sum to 1; N at least num_splits.
    """
    if len(probabilities) < num_splits:
        raise ValueError(f"an Inception Score over {num_splits} splits needs as many images, got {len(probabilities)}")
    scores = inception_score_resampler(probabilities, num_splits)(np.ones(len(probabilities)))
    return float(np.mean(scores)), float(np.std(scores))


def inception_score_resampler(probabilities: np.ndarray, num_splits: int = 10) -> Callable[[np.ndarray], np.ndarray]:
    """A function from how often each image is taken, (N,), to the scores of the splits, (num_splits,)."""
    ends = split_ends(len(probabilities), num_splits)
    parts = [np.asarray(probabilities[start:end], np.float64) for start, end in pairwise(ends)]
    negentropies = [(part * _log(part)).sum(1) for part in parts]

    def scores(counts: np.ndarray) -> np.ndarray:
        found = []
        for (start, end), part, negentropy in zip(pairwise(ends), parts, negentropies, strict=True):
            weights = counts[start:end] / counts[start:end].sum()
            marginal = weights @ part
            found.append(np.exp(weights @ negentropy - (marginal * _log(marginal)).sum()))
        return np.array(found)

    return scores


def split_ends(num_images: int, num_splits: int = 10) -> list[int]:
    """Borders of an Inception Score's splits, as the published code places them (np.array_split does it otherwise)."""
    return [split * num_images // num_splits for split in range(num_splits + 1)]


def _log(probabilities: np.ndarray) -> np.ndarray:
    """0 log 0 = 0: where a class never occurs, it adds nothing."""
    return np.log(np.maximum(probabilities, 1e-300))


def coverage(
    reference: np.ndarray, sampled: np.ndarray, num_neighbours: int = 3, report_alive: ReportAlive = lambda: None
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each sample lies in the reference's manifold, and each reference in the samples' (Kynkäänniemi 2019).

    A manifold is the union of balls around its images that reach to the k-th nearest other image. Returns 0.0 or 1.0
    for each sample, (N,), and each reference, (M,): their means are precision and recall.
    """
    if min(len(reference), len(sampled)) <= num_neighbours:
        raise ValueError(f"precision and recall need more than {num_neighbours} images on each side")
    real, fake = (torch.from_numpy(np.asarray(side, np.float64)) for side in (reference, sampled))
    covered = _covered(fake, real, _radii(real, num_neighbours, report_alive), report_alive)
    return covered, _covered(real, fake, _radii(fake, num_neighbours, report_alive), report_alive)


def _radii(points: Tensor, num_neighbours: int, report_alive: ReportAlive) -> Tensor:
    """(N,) squared distance of each point to its k-th nearest other point."""
    parts = []
    for rows in points.split(_ROWS_AT_ONCE):
        # Each point is its own nearest, hence k + 1.
        parts.append(squared_distances(rows, points).kthvalue(num_neighbours + 1).values)
        report_alive()
    return torch.cat(parts)


def _covered(points: Tensor, centres: Tensor, radii: Tensor, report_alive: ReportAlive) -> np.ndarray:
    parts = []
    for rows in points.split(_ROWS_AT_ONCE):
        parts.append((squared_distances(rows, centres) <= radii).any(1))
        report_alive()
    return torch.cat(parts).double().numpy()


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """(N, D), (M, D) float64 -> (N, M) squared Euclidean distances, not below 0."""
    products = rows @ columns.T
    return (rows.square().sum(1)[:, None] + columns.square().sum(1) - 2 * products).clamp(min=0)
