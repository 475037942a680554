"""Nearest training images of samples: does the model draw, or remember? (Ho et al. 2020, Figs. 12 and 15.)"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import write_json_atomic
from common.pictures import write_png
from eval.backlog import Job
from eval.metrics.extractor import build_extractor
from eval.metrics.reference import MAX_REFERENCE_FEATURES, ReferenceCache, reference_folder
from eval.metrics.scores import squared_distances
from eval.results import neighbours_path
from eval.runs import open_images
from eval.sampling.grids import sample_grid
from eval.sampling.images import sample_images
from eval.settings import EvaluationSettings
from models.snapshot import load_snapshot

NUM_NEIGHBOURS = 7
"""With the sample itself first, a row of eight."""
_NUM_TYPICAL = 200


@dataclass(frozen=True)
class Neighbours:
    """indices: (N, k) places in the data set, nearest first; distances: (N, k) in feature space."""

    indices: np.ndarray
    distances: np.ndarray


def nearest(queries: np.ndarray, references: np.ndarray, num_neighbours: int) -> Neighbours:
    """The nearest rows of references (M, D) to each row of queries (N, D), by Euclidean distance in float64."""
    rows = [torch.from_numpy(np.asarray(side, np.float64)) for side in (queries, references)]
    found = squared_distances(*rows).topk(min(num_neighbours, len(references)), largest=False)
    return Neighbours(found.indices.numpy(), found.values.sqrt().numpy())


def find_neighbours(job: Job, settings: EvaluationSettings, num_samples: int = 8) -> dict[str, Any]:
    """Compare a checkpoint's first samples with the training images; writes a picture and a JSON beside its result.

    Each row of the picture: a sample, then its nearest training images by the protocol's features. `typical_distance`
    is the median distance of a training image to its own nearest other one: samples much nearer than that are copies.
    Raises BlockedError if weights are missing, ValueError for a protocol without features to compare.
    """
    device, protocol = settings.torch_device(), job.protocol
    if protocol.metric in ("bits_per_dim", "inception_score"):
        raise ValueError(f"{protocol.name} has no features to compare images by; give an fd_ or fid_ protocol")
    settings.prepare_process()
    extractor = build_extractor(protocol, settings.weights_folder, device)
    snapshot, images = load_snapshot(job.checkpoint, device), open_images(job.run_directory)
    samples = sample_images(snapshot, protocol, 0, num_samples, settings.batch_size)
    cache = ReferenceCache(reference_folder(job.run_directory.parent))
    reference = cache.features(protocol, lambda: images, extractor, lambda: None)
    found = nearest(extractor(samples).numpy(), reference, NUM_NEIGHBOURS)
    num_kept = min(len(images), MAX_REFERENCE_FEATURES)
    places = found.indices * len(images) // num_kept
    own = reference[:: max(1, len(reference) // _NUM_TYPICAL)]
    typical = float(np.median(nearest(own, reference, 2).distances[:, 1]))
    answer = {
        "checkpoint": job.checkpoint.name,
        "step": job.step,
        "protocol": protocol.describe(),
        "num_compared": len(reference),
        "keys": [[images.key(int(place)) for place in row] for row in places],
        "distances": found.distances.tolist(),
        "typical_distance": typical,
    }
    neighbours_path(job.result_path, ".png").parent.mkdir(parents=True, exist_ok=True)
    write_png(
        neighbours_path(job.result_path, ".png"),
        sample_grid(_rows(samples, images, places), columns=NUM_NEIGHBOURS + 1, always=True),
        optimize=True,
    )
    write_json_atomic(neighbours_path(job.result_path, ".json"), answer)
    return answer


def _rows(samples: Tensor, images: Any, places: np.ndarray) -> Tensor:
    """Sample, then its neighbours, row after row: uint8 (N * (k + 1), C, H, W)."""
    cells = []
    for sample, row in zip(samples, places, strict=True):
        cells.append(sample)
        cells += [torch.from_numpy(images.read(int(place))).permute(2, 0, 1) for place in row]
    return torch.stack(cells)
