"""Which reader fits what lies at a path."""

from pathlib import Path

from data_pipeline.sources.archives import TarSource, ZipSource
from data_pipeline.sources.binaries import cifar_archive_source, cifar_source, find_binaries, idx_source, is_idx
from data_pipeline.sources.source import FolderSource, Source
from data_pipeline.sources.tables import LmdbSource, ParquetSource
from data_pipeline.storage.manifest import MANIFEST_NAME

_ALLOWED = (
    "a folder of images, .zip, .tar, .parquet, an LMDB folder, MNIST IDX files or CIFAR binaries; "
    "or a folder of .tar or .parquet files"
)


def open_source(path: str | Path, follow_links: bool = False) -> Source:
    """The reader for what lies at `path`. FileNotFoundError; ValueError naming what can be read."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"source {path} does not exist; give {_ALLOWED}")
    return _open_folder(path, follow_links) if path.is_dir() else _open_file(path)


def _open_file(path: Path) -> Source:
    name = path.name.lower()
    if name.endswith(".zip"):
        return ZipSource(path)
    if name.endswith(".tar"):
        return TarSource([path])
    if name.endswith((".tar.gz", ".tgz")):
        return cifar_archive_source(path)
    if name.endswith(".parquet"):
        return ParquetSource([path], path.parent)
    if name.endswith((".mdb", ".lmdb")):
        return LmdbSource(path)
    if is_idx(path):
        return idx_source(path)
    if name.endswith(".bin"):
        return cifar_source([path])
    raise ValueError(f"cannot tell what {path} is; give {_ALLOWED}")


def _open_folder(path: Path, follow_links: bool) -> Source:
    if (path / "data.mdb").is_file():
        return LmdbSource(path)
    tars, tables = sorted(path.glob("*.tar")), sorted(path.rglob("*.parquet"))
    if tars and (path / MANIFEST_NAME).is_file():
        return TarSource(tars)  # one of our own sets; its preview is not one of its images
    folder = FolderSource(path, follow_links)
    num_images = len(folder.entries())
    if num_images and (tars or tables):
        raise ValueError(
            f"{path} holds {num_images} image files beside .tar or .parquet files; give one kind at a time"
        )
    if tars and tables:
        raise ValueError(f"{path} holds .tar and .parquet files; give one kind at a time")
    if tars:
        return TarSource(tars)
    if tables:
        return ParquetSource(tables, path)
    return folder if num_images else find_binaries(path) or folder
