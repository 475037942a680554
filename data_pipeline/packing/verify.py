"""Checking a packed data set from end to end: hashes, indexes against the tars, and every sample decoded."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.files import sha256_of_file
from data_pipeline.storage.address import is_remote
from data_pipeline.storage.dataset import Dataset
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.fetch import Fetcher, FetchSettings
from data_pipeline.storage.index import index_of, parse_index
from data_pipeline.storage.local import LocalFiles
from data_pipeline.storage.manifest import Manifest, ShardRecord, data_folder, load_manifest
from data_pipeline.storage.shards import read_manifest


def verify(
    path: str | Path, progress: Callable[[int, int], None] | None = None, fetch: FetchSettings | None = None
) -> Manifest:
    """Verify the data set in a local folder or below a URL; returns its manifest if nothing is wrong.

    A remote set passes through a temporary folder, a shard at a time; no cache is asked, as the server is what counts.
    Raises DamagedDataError naming the shard, and the sample where there is one; FileNotFoundError; ValueError.
    progress is called after each shard with the number of samples done and the number of all.
    """
    settings = fetch or FetchSettings()
    if is_remote(str(path)):
        manifest, fetcher = read_manifest(path, settings), Fetcher(str(path), settings)
    else:
        manifest, fetcher = load_manifest(path), None
        LocalFiles(data_folder(path), manifest.shards)  # names what is missing before hours of hashing
    num_done = 0
    seen: set[str] = set()
    for record in manifest.shards:
        with _folder(data_folder(path), fetcher, record) as folder:
            _verify_shard(folder, manifest, record, seen)
        num_done += record.samples
        if progress:
            progress(num_done, manifest.num_samples)
    return manifest


def _verify_shard(folder: Path, manifest: Manifest, record: ShardRecord, seen: set[str]) -> None:
    """seen: keys of the shards before; those of this one are added."""
    for name, expected in ((record.name, record.sha256), (record.index_name, record.index_sha256)):
        actual = sha256_of_file(folder / name)
        if actual != expected:
            raise DamagedDataError(
                f"shard file {name} is damaged: sha256 {actual}, packed was {expected}; restore or pack again"
            )
    files = LocalFiles(folder, [record])
    index = parse_index(files.read_index(record), record)
    if index.to_json(record.name) != index_of(folder / record.name, record.name).to_json(record.name):
        raise DamagedDataError(f"the index of shard {record.name} does not describe its tar; pack again")
    if not seen.isdisjoint(index.keys):
        raise DamagedDataError(f"shard {record.name} repeats key {min(seen & set(index.keys))!r}; pack again")
    seen.update(index.keys)
    with Dataset(replace(manifest, num_samples=record.samples, shards=(record,)), files) as dataset:
        image = np.empty(dataset.image_shape, dtype=np.uint8)
        for row in range(record.samples):
            dataset.read_into(row, image)


@contextmanager
def _folder(root: Path, fetcher: Fetcher | None, record: ShardRecord) -> Iterator[Path]:
    """Where a shard and its index lie: the data set's folder, or a temporary one into which they are fetched."""
    if fetcher is None:
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="rayddpm-verify-") as folder:
        for name, num_bytes, sha256 in (
            (record.name, record.bytes, record.sha256),
            (record.index_name, record.index_bytes, record.index_sha256),
        ):
            with open(Path(folder, name), "w+b") as file:
                fetcher.fetch_known(name, file, num_bytes, sha256)
        yield Path(folder)
