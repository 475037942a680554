"""Checking a packed data set from end to end: hashes, indexes against the tars, and every sample decoded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.dataset import DamagedDataError, Dataset, LocalFiles, parse_index
from data_pipeline.manifest import Manifest, load_manifest
from data_pipeline.writer import hash_file, index_of


def verify(path: str | Path, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Verify the data set in a local folder; returns its manifest if nothing is wrong.

    Raises DamagedDataError naming the shard, and the sample where there is one; FileNotFoundError; ValueError.
    progress is told, after each shard, how many samples of how many are done.
    """
    root = Path(path)
    manifest = load_manifest(root)
    files = LocalFiles(root, manifest.shards)
    num_done = 0
    seen: set[str] = set()
    with Dataset(manifest, files) as dataset:
        image = np.empty(dataset.image_shape, dtype=np.uint8)
        for record in manifest.shards:
            for name, expected in ((record.name, record.sha256), (record.index_name, record.index_sha256)):
                actual = hash_file(root / name)
                if actual != expected:
                    raise DamagedDataError(
                        f"shard file {name} is damaged: sha256 {actual}, packed was {expected}; restore or pack again"
                    )
            index = parse_index(files.read_index(record), record)
            if index.to_json(record.name) != index_of(root / record.name, record.name).to_json(record.name):
                raise DamagedDataError(f"the index of shard {record.name} does not describe its tar; pack again")
            if not seen.isdisjoint(index.keys):
                raise DamagedDataError(f"shard {record.name} repeats key {min(seen & set(index.keys))!r}; pack again")
            seen.update(index.keys)
            for row in range(record.samples):
                dataset.read_into(num_done + row, image)
            num_done += record.samples
            if progress:
                progress(num_done, manifest.num_samples)
    return manifest
