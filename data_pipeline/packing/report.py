"""What a pack came to: report.json, the mean image and a preview grid. The same bytes for the same images."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import write_text_atomic
from common.pictures import as_image, tile, write_png
from data_pipeline.packing.framing import Framing, frame_array
from data_pipeline.packing.writer import WORK_FOLDER, ShardNotes
from data_pipeline.sources.source import Refusal
from data_pipeline.storage.dataset import Dataset
from data_pipeline.storage.local import LocalFiles
from data_pipeline.storage.manifest import Manifest

REPORT_NAME, PREVIEW_NAME, MEAN_NAME = "report.json", "preview.png", "mean.png"
_GRID = 8
_GRID_GAP_PIXELS = 2
_MAX_CELL_PIXELS = 96
_NUM_LISTED_SIZES = 100


def write_report(
    manifest: Manifest, dest: Path, notes: Sequence[ShardNotes], refused: Sequence[Refusal], num_ignored: int
) -> None:
    """Write the three files into `dest`. The notes' pixel sums still lie in the work folder."""
    files = [dest / WORK_FOLDER / (note.shard + ".npy") for note in notes]
    sums = sum(np.load(file, allow_pickle=False).astype(np.int64) for file in files)
    mean = np.asarray(sums) / manifest.num_samples
    sizes: Counter[str] = Counter()
    for note in notes:
        sizes.update(note.source_sizes)
    content = {
        "num_packed": manifest.num_samples,
        "num_refused": len(refused),
        "num_ignored_files": num_ignored,
        "num_enlarged": sum(note.num_enlarged for note in notes),
        "num_kept_bytes": sum(note.num_kept for note in notes),
        "num_shards": len(manifest.shards),
        "total_bytes": sum(shard.bytes for shard in manifest.shards),
        "mean_pixel": [round(float(value), 3) for value in mean.mean(axis=(0, 1))],
        # Common sizes first; the tail of a wild collection is summed up.
        "source_sizes": dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:_NUM_LISTED_SIZES]),
        "num_source_sizes": len(sizes),
        "refused": [{"name": refusal.name, "reason": refusal.reason} for refusal in refused],
        "digest": manifest.digest,
    }
    write_text_atomic(dest / REPORT_NAME, json.dumps(content, indent=1) + "\n")
    pictures = {
        MEAN_NAME: np.rint(mean).astype(np.uint8),
        PREVIEW_NAME: preview(Dataset(manifest, LocalFiles(dest, manifest.shards))),
    }
    for name, picture in pictures.items():
        write_png(dest / name, as_image(picture), compress_level=1)


def preview(dataset: Dataset) -> np.ndarray:
    """Up to 64 samples, evenly spaced over the set, at most 96 pixels each, as one (H, W, C) uint8 picture."""
    num_images = min(_GRID * _GRID, len(dataset))
    indices = np.linspace(0, len(dataset) - 1, num_images).round().astype(int)
    framing = Framing(min(dataset.image_shape[0], _MAX_CELL_PIXELS), dataset.image_shape[2])
    images = np.stack([frame_array(dataset.read(int(index)), framing).pixels for index in indices])
    return tile(images, min(_GRID, num_images), _GRID_GAP_PIXELS, border=(0, _GRID_GAP_PIXELS))
