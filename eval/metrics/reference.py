"""Statistics of the reference images, streamed from the shards once and cached beside the runs.

The cache is keyed by everything that defines them: the data set's manifest digest, the extractor's weights, the resize
mode, the precision. Features themselves are kept too, for the metrics that compare images one by one.
"""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Protocol as Interface

import numpy as np
import torch
from torch import Tensor

from common.files import TEMPORARY_NAMES, sha256_of_file, temporary_name, write_atomic
from eval.errors import BlockedError, ReportAlive
from eval.metrics.extractor import EXTRACTORS, FeatureExtractor, find_extractor
from eval.metrics.metric import METRICS
from eval.metrics.statistics import FeatureStatistics

if TYPE_CHECKING:
    from eval.protocol import Protocol

MAX_REFERENCE_FEATURES = 50_000
"""Kernel distance and precision/recall look at no more reference images than this: evenly spaced ones."""
_BATCH_IMAGES = 64
_ABANDONED_SECONDS = 3600.0  # writing a file of the cache takes seconds


class ImageSource(Interface):
    """What the reference needs of a data set; data_pipeline's Dataset is one."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> np.ndarray:
        """uint8 (H, W, C)."""
        ...


def reference_folder(storage: Path) -> Path:
    """Where the runs of a storage folder keep reference statistics."""
    return storage / "reference-statistics"


OpenImages = Callable[[], ImageSource]
"""Called only if what is asked for is not cached."""


@dataclass(frozen=True)
class ReferenceCache:
    """Reference statistics below one folder, shared by all runs and evaluators of a storage."""

    folder: Path

    def statistics(
        self, protocol: "Protocol", open_images: OpenImages, extractor: FeatureExtractor, report_alive: ReportAlive
    ) -> FeatureStatistics:
        """Statistics of every image of the data set; `report_alive` is called while it takes long."""
        path = self._path(protocol, "statistics")
        self.check_imported(protocol)
        if protocol.reference == "npz":
            return FeatureStatistics.load(path)
        _drop_damaged(path, lambda: _check_dimension(path, len(FeatureStatistics.load(path).mean), extractor))
        if not path.exists():
            images = open_images()
            statistics = FeatureStatistics.empty(extractor.dimension)
            for batch in image_batches(images, range(len(images))):
                statistics.update(extractor(batch))
                report_alive()
            self._store(path, lambda temporary: statistics.save(temporary))
        # Always what was stored: the first evaluation and the next see the same bits.
        return FeatureStatistics.load(path)

    def check_imported(self, protocol: "Protocol") -> None:
        """Raises BlockedError if the protocol compares with imported statistics that are not here."""
        path = self._path(protocol, "statistics")
        if protocol.reference == "npz" and not path.exists():
            raise BlockedError(f"reference: {path} is missing; run `python -m eval import-reference` on its file")

    def features(
        self, protocol: "Protocol", open_images: OpenImages, extractor: FeatureExtractor, report_alive: ReportAlive
    ) -> np.ndarray:
        """Features (num_images, D) float32 of at most MAX_REFERENCE_FEATURES images, evenly spaced."""
        path = self._path(protocol, "features")
        _drop_damaged(path, lambda: _check_dimension(path, _load_features(path).shape[1], extractor))
        if not path.exists():
            images = open_images()
            num_kept = min(len(images), MAX_REFERENCE_FEATURES)
            kept = [index * len(images) // num_kept for index in range(num_kept)]
            rows = []
            for batch in image_batches(images, kept):
                rows.append(extractor(batch).to(torch.float32).numpy())
                report_alive()
            self._store(path, lambda temporary: _save_features(temporary, np.concatenate(rows)))
        return _load_features(path)

    def import_npz(self, file: Path, protocol: "Protocol", num_images: int) -> "Protocol":
        """Keep published statistics (clean-fid's npz with mu and sigma) as a reference; the protocol that uses them.

        num_images: how many images they were made of, which the file does not say. Raises ValueError if the file is
        damaged or does not fit the protocol's features.
        """
        try:
            with np.load(file, allow_pickle=False) as data:
                mean, covariance = (np.asarray(data[name], np.float64) for name in ("mu", "sigma"))
        except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            # numpy gives what has no names (a .npy file) as an array, and takes any other file for a pickle
            raise ValueError(f"{file} holds no published statistics (mu, sigma): {error}") from error
        if not METRICS[protocol.metric].uses_statistics:
            raise ValueError(f"{protocol.name} is not a Fréchet distance; published statistics serve no other metric")
        dimension = EXTRACTORS[find_extractor(protocol.extractor, protocol.resize)].dimension
        if (mean.shape, covariance.shape) != ((dimension,), (dimension, dimension)):
            raise ValueError(
                f"{file} holds mu {mean.shape} and sigma {covariance.shape}, {protocol.name} needs ({dimension},) and "
                f"({dimension}, {dimension})"
            )
        if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise ValueError(f"{file} holds values that are not finite")
        digest = sha256_of_file(file)[:16]
        bound = replace(protocol, reference="npz", reference_digest=digest)
        path = self._path(bound, "statistics")
        known = FeatureStatistics.load(path).count if path.exists() else num_images
        if known != num_images:
            raise ValueError(
                f"num_images={num_images}: {file} was imported as made of {known}; remove {path} if not so"
            )
        statistics = FeatureStatistics(num_images, mean, covariance * (num_images - 1))
        self._store(path, statistics.save)
        return bound

    def _path(self, protocol: "Protocol", kind: str) -> Path:
        if protocol.reference_digest is None:
            raise ValueError(f"protocol {protocol.name} is not bound to a data set; call bind(manifest_digest) first")
        key = [protocol.reference_digest[:16], protocol.extractor, protocol.extractor_sha256[:16], protocol.resize]
        if protocol.precision != "float32":
            key.append(protocol.precision)
        return self.folder / f"{'-'.join(key)}-v{protocol.version}.{kind}.npz"

    def _store(self, path: Path, write: Callable[[Path], None]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        write_atomic(path, write)


def _remove_leftovers(path: Path) -> None:
    """Remove what evaluators that were killed while they wrote `path` have left: up to 400 MB each."""
    mark = temporary_name(path)
    mark.touch()
    now = mark.stat().st_mtime  # by the storage's own clock
    for left in path.parent.glob(f"{TEMPORARY_NAMES.removesuffix('*')}{path.name}"):
        if left == mark or now - left.stat().st_mtime > _ABANDONED_SECONDS:
            left.unlink(missing_ok=True)


def image_batches(images: ImageSource, indices: range | list[int]) -> Iterator[Tensor]:
    """uint8 (B, C, H, W) batches of the images at `indices`, in that order."""
    for start in range(0, len(indices), _BATCH_IMAGES):
        chosen = indices[start : start + _BATCH_IMAGES]
        yield torch.from_numpy(np.stack([images.read(index) for index in chosen])).permute(0, 3, 1, 2).contiguous()


def _save_features(path: Path, features: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.savez(file, features=features)


def _load_features(path: Path) -> np.ndarray:
    """Raises ValueError for a file that is damaged."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return np.asarray(data["features"])
    except (OSError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no features: {error}") from error


def _check_dimension(path: Path, dimension: int, extractor: FeatureExtractor) -> None:
    if dimension != extractor.dimension:
        raise ValueError(f"{path} holds {dimension} features, not {extractor.dimension}")


def _drop_damaged(path: Path, check: Callable[[], object]) -> None:
    """A cache file that cannot be used is removed, to be made again."""
    if path.exists():
        try:
            check()
        except ValueError:
            path.unlink(missing_ok=True)
