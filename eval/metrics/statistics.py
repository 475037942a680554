"""Streaming statistics of features and the Fréchet distance between them, in float64.

Accumulators hold (count, mean, scatter about the mean) and are merged pairwise, which loses nothing when the mean is
large beside the spread, as raw sums of outer products would (Chan, Golub, LeVeque 1979).
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class FeatureStatistics:
    """Of `count` feature vectors x. mean: (D,) float64; scatter: (D, D) float64, the sum of (x - mean)(x - mean)^T."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def empty(cls, dimension: int) -> "FeatureStatistics":
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, features: np.ndarray | Tensor) -> "FeatureStatistics":
        """Statistics of features (N, D), computed in float64. Raises ValueError for a value that is not finite."""
        rows = torch.as_tensor(features).to(torch.float64)
        if rows.ndim != 2 or len(rows) == 0:
            raise ValueError(f"features of shape {tuple(rows.shape)}: (num_images > 0, dimension) is needed")
        if not torch.isfinite(rows).all():
            raise ValueError("features hold NaN or infinity; the images or the extractor are broken")
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean.numpy(), (centred.T @ centred).numpy())

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """Statistics of both sets together; neither input changes."""
        merged = FeatureStatistics(self.count, self.mean.copy(), self.scatter.copy())
        merged._absorb(other)
        return merged

    def update(self, features: np.ndarray | Tensor) -> None:
        """Add features (N, D) in place."""
        self._absorb(FeatureStatistics.of(features))

    def _absorb(self, other: "FeatureStatistics") -> None:
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot merge statistics of {len(self.mean)} and {len(other.mean)} dimensions")
        count = self.count + other.count
        if not count:
            return
        shift = other.mean - self.mean
        self.scatter += other.scatter
        if self.count and other.count:
            self.scatter += np.outer(shift, shift * (self.count * other.count / count))
        self.mean = self.mean + shift * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> np.ndarray:
        """(D, D) float64, unbiased (divided by count - 1), as numpy.cov and clean-fid compute it."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, there is {self.count}")
        return self.scatter / (self.count - 1)

    @property
    def rank_bound(self) -> int:
        """The covariance cannot have a larger rank than this."""
        return min(self.count - 1, len(self.mean))

    def save(self, path: Path, **extra: Any) -> None:
        """One npz with mu and sigma named as clean-fid names them, the count, and `extra` values."""
        with open(path, "wb") as file:
            np.savez(file, mu=self.mean, sigma=self.covariance, count=self.count, **extra)

    @classmethod
    def load(cls, path: Path) -> "FeatureStatistics":
        """Read what `save` wrote. Raises ValueError if the file is not such statistics or is damaged."""
        try:
            with np.load(path, allow_pickle=False) as data:
                mean, covariance, count = data["mu"], data["sigma"], int(data["count"])
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} holds no feature statistics (mu, sigma, count): {error}") from error
        return cls(count, mean.astype(np.float64), covariance.astype(np.float64) * (count - 1))


def covariance_factor(covariance: np.ndarray) -> np.ndarray:
    """A (D, r) float64 with A A^T = covariance (D, D): its Cholesky factor, r = D, or for a singular one r its rank.

    In a singular covariance, directions whose variance is below the rounding error of the largest are dropped: they
    hold no information, and the square roots taken later would blow their rounding errors up (1e-16 becomes 1e-8).
    """
    symmetric = torch.from_numpy(_symmetric(covariance))
    rounding = len(symmetric) * torch.finfo(torch.float64).eps
    lower, failed = torch.linalg.cholesky_ex(symmetric)
    # A twentieth of the time of eigenvectors; the trace is no less than the largest eigenvalue.
    if not failed and lower.diagonal().square().min() > rounding * symmetric.trace():
        return lower.numpy()
    eigenvalues, eigenvectors = torch.linalg.eigh(symmetric)
    kept = eigenvalues > eigenvalues[-1].clamp(min=0) * rounding
    return (eigenvectors[:, kept] * eigenvalues[kept].sqrt()).numpy()


def trace_of_root(factor: np.ndarray, covariance: np.ndarray) -> float:
    """tr sqrt(S1 S2) for S1 = factor factor^T and S2 = covariance: the sum of sqrt(eigenvalues of factor^T S2 factor).

    That matrix is symmetric, positive semi-definite and has the non-zero eigenvalues of S1 S2, so no complex or
    negative part can appear, whatever the ranks.
    """
    if factor.shape[1] == 0:
        return 0.0
    left = torch.from_numpy(factor)
    inner = left.T @ torch.from_numpy(np.ascontiguousarray(covariance)) @ left
    return float(torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum())


def frechet_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """||mean_1 - mean_2||^2 + tr(S1 + S2 - 2 sqrt(S1 S2)), never NaN, never negative (Heusel et al. 2017, Eq. 6).

    means: (D,), covariances: (D, D), float64. Raises ValueError on values that are not finite or shapes that differ.
    """
    _check(mean_1, covariance_1, mean_2, covariance_2)
    difference = np.asarray(mean_1, np.float64) - mean_2
    distance = difference @ difference + np.trace(covariance_1) + np.trace(covariance_2)
    return max(0.0, float(distance) - 2 * trace_of_root(covariance_factor(covariance_1), covariance_2))


def statistics_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """Fréchet distance of two sets of features, in either order."""
    # The lower rank first: its factor gives the smaller and better conditioned inner matrix.
    first, second = (one, other) if one.rank_bound <= other.rank_bound else (other, one)
    return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def small_sample_warnings(sampled: FeatureStatistics, reference: FeatureStatistics) -> list[str]:
    """A covariance from fewer images than features is singular and the distance biased upwards: say so."""
    dimension = len(sampled.mean)
    sides = (("sampled", sampled.count), ("reference", reference.count))
    return [
        f"{count} {side} images are no more than the {dimension} features: the covariance is singular and the distance "
        "biased; compare only numbers of this protocol"
        for side, count in sides
        if count <= dimension
    ]


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix, np.float64)
    return (matrix + matrix.T) / 2


def _check(mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray) -> None:
    dimension = len(mean_1)
    shapes = [np.shape(a) for a in (mean_1, covariance_1, mean_2, covariance_2)]
    if shapes != [(dimension,), (dimension, dimension)] * 2:
        raise ValueError(f"means and covariances of shapes {shapes} do not belong together")
    if not all(np.isfinite(a).all() for a in (mean_1, covariance_1, mean_2, covariance_2)):
        raise ValueError("means or covariances hold NaN or infinity; the features are broken")
