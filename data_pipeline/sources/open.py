"""Which reader fits what lies at a path: one table with a line for each kind of source."""

from collections.abc import Callable
from pathlib import Path

from data_pipeline.sources.archives import TarSource, ZipSource
from data_pipeline.sources.binaries import open_cifar, open_idx
from data_pipeline.sources.source import FolderSource, Source
from data_pipeline.sources.tables import LmdbSource, ParquetSource

SOURCES: dict[str, Callable[[Path, bool], Source | None]] = {
    "an LMDB folder": LmdbSource.opened,
    "a .zip file": ZipSource.opened,
    "a .tar file or a folder of them": TarSource.opened,
    "a .parquet file or a folder of them": ParquetSource.opened,
    "a folder of images": FolderSource.opened,
    "MNIST IDX files": open_idx,
    "CIFAR binaries": open_cifar,
}
"""(path, follow_links) -> the reader if what lies at the path is of this kind, else None; the first that fits reads it.
Each raises ValueError if it is of its kind and cannot be trusted, or not of one kind alone."""


def open_source(path: str | Path, follow_links: bool = False) -> Source:
    """The reader for what lies at `path`. FileNotFoundError; ValueError naming what can be read."""
    path = Path(path)
    allowed = f"give one of: {', '.join(SOURCES)}"
    if not path.exists():
        raise FileNotFoundError(f"source {path} does not exist; {allowed}")
    for opened in SOURCES.values():
        source = opened(path, follow_links)
        if source:
            return source
    if path.is_dir():
        return FolderSource(path, follow_links)  # without images: it can say what it passed over and what it refused
    raise ValueError(f"cannot tell what {path} is; {allowed}")
