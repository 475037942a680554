"""Metrics on features other than the Fréchet distance: kernel distance, Inception Score, precision and recall.

All in float64, all seeded: the same features give the same number.
"""

from itertools import pairwise

import numpy as np
import torch

_ROWS_AT_ONCE = 1024


def kernel_distance(
    reference: np.ndarray, sampled: np.ndarray, seed: int = 0, num_subsets: int = 100, max_subset_size: int = 1000
) -> tuple[float, float]:
    """Unbiased squared MMD under the kernel (x.y / D + 1)^3, averaged over random subsets (KID, Binkowski et al. 2018).

    reference: (N, D), sampled: (M, D). Returns (mean, standard deviation over subsets). Subsets are those clean-fid's
    kernel_distance(reference, sampled) draws after numpy.random.seed(seed). May be slightly negative: it is unbiased.
    """
    size = min(len(reference), len(sampled), max_subset_size)
    if size < 2:
        raise ValueError(f"a kernel distance needs at least 2 images on each side, there are {size}")
    random = np.random.RandomState(seed)
    estimates = []
    for _ in range(num_subsets):
        # Sampled first: the order in which clean-fid consumes its random numbers.
        x = _rows(sampled, random.choice(len(sampled), size, replace=False))
        y = _rows(reference, random.choice(len(reference), size, replace=False))
        within = _kernel_sum(x, x, diagonal=False) + _kernel_sum(y, y, diagonal=False)
        estimates.append(within / (size * (size - 1)) - 2 * _kernel_sum(x, y) / size**2)
    return float(np.mean(estimates)), float(np.std(estimates))


def _rows(features: np.ndarray, chosen: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(features[chosen], np.float64))


def _kernel_sum(x: torch.Tensor, y: torch.Tensor, diagonal: bool = True) -> float:
    kernel = (x @ y.T / x.shape[1] + 1) ** 3
    return float(kernel.sum() if diagonal else kernel.sum() - kernel.diagonal().sum())


def inception_score(probabilities: np.ndarray, num_splits: int = 10) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))), mean and standard deviation over splits of the images (Salimans et al. 2016).

    probabilities: (N, classes), rows sum to 1; N at least num_splits.
    """
    if len(probabilities) < num_splits:
        raise ValueError(f"an Inception Score over {num_splits} splits needs as many images, got {len(probabilities)}")
    scores = []
    # The published code's splits: np.array_split puts the longer parts first where num_splits does not divide N.
    ends = [split * len(probabilities) // num_splits for split in range(num_splits + 1)]
    for start, end in pairwise(ends):
        part = np.asarray(probabilities[start:end], np.float64)
        marginal = part.mean(0)
        # 0 log 0 = 0: where a class never occurs, it adds nothing.
        log_ratio = np.log(np.maximum(part, 1e-300)) - np.log(np.maximum(marginal, 1e-300))
        scores.append(np.exp((part * log_ratio).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(reference: np.ndarray, sampled: np.ndarray, num_neighbours: int = 3) -> tuple[float, float]:
    """Share of samples within the reference's manifold, and of the reference within the samples' (Kynkäänniemi 2019).

    A manifold is the union of balls around its images that reach to the k-th nearest other image. Returns
    (precision, recall), each in [0, 1].
    """
    if min(len(reference), len(sampled)) <= num_neighbours:
        raise ValueError(f"precision and recall need more than {num_neighbours} images on each side")
    real, fake = (torch.from_numpy(np.asarray(side, np.float64)) for side in (reference, sampled))
    precision = _share_covered(fake, real, _radii(real, num_neighbours))
    recall = _share_covered(real, fake, _radii(fake, num_neighbours))
    return precision, recall


def _radii(points: torch.Tensor, num_neighbours: int) -> torch.Tensor:
    """(N,) squared distance of each point to its k-th nearest other point."""
    # Each point is its own nearest, hence k + 1.
    parts = [
        squared_distances(rows, points).kthvalue(num_neighbours + 1).values for rows in points.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(parts)


def _share_covered(points: torch.Tensor, centres: torch.Tensor, radii: torch.Tensor) -> float:
    covered = [(squared_distances(rows, centres) <= radii).any(1) for rows in points.split(_ROWS_AT_ONCE)]
    return float(torch.cat(covered).double().mean())


def squared_distances(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(N, D), (M, D) float64 -> (N, M) squared Euclidean distances, not below 0."""
    products = rows @ columns.T
    return (rows.square().sum(1)[:, None] + columns.square().sum(1) - 2 * products).clamp(min=0)
