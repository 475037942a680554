"""Small archives of photos, and packing them."""

import io
import tarfile
from pathlib import Path

import numpy as np

from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.packing.process_runner import run_in_processes
from data_pipeline.sources.open import open_source
from data_pipeline.storage.dataset import Dataset
from data_pipeline.storage.shards import open_dataset
from tests.support.data import encoded, photo

OPTIONS = PackOptions(image_size=16, samples_per_shard=4)


def packed(source: Path, dest: Path, **options: object) -> Dataset:
    settings = {"image_size": 16, "samples_per_shard": 4} | options
    pack(open_source(source), dest, PackOptions(**settings), run_in_processes(1))  # type: ignore[arg-type]
    return open_dataset(dest, memory_bytes=0)


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            add(archive, name, data)
    return path


def photos(number: int, pattern: str = "photo{:03d}.png") -> dict[str, bytes]:
    return {pattern.format(i): encoded(photo(16, i)) for i in range(number)}


def assert_photos(dataset: Dataset, number: int, order: list[int] | None = None) -> None:
    for index, seed in enumerate(order or range(number)):
        np.testing.assert_array_equal(dataset.read(index), photo(16, seed))
    assert len(dataset) == number
