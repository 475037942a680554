"""The way into a packed data set, wherever it lies."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.storage.address import is_remote, shown_address
from data_pipeline.storage.cache import FileCache, cache_folder
from data_pipeline.storage.dataset import Dataset, ShardFiles
from data_pipeline.storage.decoded import DecodedImages
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.fetch import Fetcher, FetchSettings
from data_pipeline.storage.local import LocalFiles
from data_pipeline.storage.manifest import MANIFEST_NAME, Manifest, data_folder, load_manifest, parse_manifest
from data_pipeline.storage.remote import RemoteFiles

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "DamagedDataError",
    "Dataset",
    "FetchSettings",
    "open_dataset",
    "read_manifest",
    "reading_options",
]

DEFAULT_CACHE_BYTES = 50 << 30
DEFAULT_MEMORY_BYTES = 256 << 20
_GIB = 1 << 30


def open_dataset(
    path: str | Path,
    *,
    expected_digest: str | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    cache_dir: str | Path | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    fetch: FetchSettings | None = None,
    on_try: Callable[[str], None] = lambda moment: None,
) -> Dataset:
    """Open the data set at a local folder, or below an http(s):// or s3:// URL.

    expected_digest: the digest that a run was started with. memory_bytes: a set that fits into this much memory when
    decoded is decoded once, into memory that the processes of a node share; 0 decodes every time. cache_dir,
    cache_bytes: where fetched shards are kept, shared by the processes of a node, and how much; the budget should
    hold a node's share of the data. on_try: called around every try to fetch a file, see Fetcher.
    Raises FileNotFoundError, DamagedDataError or ValueError, also if the digest is another one.
    """
    manifest, files = _open_files(str(path), cache_dir, cache_bytes, fetch or FetchSettings(), on_try)
    if expected_digest is not None and manifest.digest != expected_digest:
        files.close()
        shown = shown_address(str(path)) if is_remote(str(path)) else path
        raise ValueError(
            f"the data set at {shown} has digest {manifest.digest}, but {expected_digest} is expected: it was packed "
            "again or replaced; restore it, or start a new run"
        )
    shape = (manifest.num_samples, manifest.image_size, manifest.image_size, manifest.image_channels)
    fits = math.prod(shape) <= memory_bytes
    return Dataset(manifest, files, DecodedImages(manifest.digest, shape) if fits else None)


def reading_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of open_dataset from a run's data settings: memory_gib, cache_folder, cache_gib and s3_endpoint_url.

    A setting that is absent, as in the records of old runs, or an empty text, keeps its default.
    """
    defaults = {"memory_gib": DEFAULT_MEMORY_BYTES / _GIB, "cache_gib": DEFAULT_CACHE_BYTES / _GIB}
    values = defaults | dict(settings)
    return {
        "memory_bytes": int(values["memory_gib"] * _GIB),
        "cache_dir": values.get("cache_folder") or None,
        "cache_bytes": int(values["cache_gib"] * _GIB),
        "fetch": FetchSettings(endpoint_url=values.get("s3_endpoint_url") or None),
    }


def read_manifest(
    path: str | Path, fetch: FetchSettings | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES
) -> Manifest:
    """The manifest alone, of a local folder or a URL. Errors as open_dataset raises them for the same arguments."""
    if not is_remote(str(path)):
        return load_manifest(path)
    return _fetch_manifest(Fetcher(str(path), fetch or FetchSettings()), cache_bytes)


def _open_files(
    path: str,
    cache_dir: str | Path | None,
    cache_bytes: int,
    settings: FetchSettings,
    on_try: Callable[[str], None],
) -> tuple[Manifest, ShardFiles]:
    if not is_remote(path):
        manifest = load_manifest(path)
        return manifest, LocalFiles(data_folder(path), manifest.shards)
    fetcher = Fetcher(path, settings, on_try)
    manifest = _fetch_manifest(fetcher, cache_bytes)
    cache = FileCache(Path(cache_dir).expanduser() if cache_dir else cache_folder() / "shards", cache_bytes)
    return manifest, RemoteFiles(fetcher, cache, settings.num_threads)


def _fetch_manifest(fetcher: Fetcher, cache_bytes: int) -> Manifest:
    manifest = parse_manifest(fetcher.fetch_json(MANIFEST_NAME), f"{fetcher.shown_url}/{MANIFEST_NAME}")
    largest = max(manifest.shards, key=lambda shard: shard.bytes)
    if largest.bytes > cache_bytes:
        raise ValueError(
            f"shard {largest.name} has {largest.bytes} bytes, more than the cache budget of {cache_bytes}; raise it "
            "(for a run: data.cache_gib)"
        )
    return manifest
