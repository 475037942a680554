"""MNIST and CIFAR in their published binary files."""

import gzip
import json
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sources import binaries
from data_pipeline.sources.open import open_source
from tests.support.sources import add, packed


def write_idx(path: Path, array: np.ndarray, compress: bool = False) -> Path:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + b"".join(struct.pack(">I", n) for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()) if compress else header + array.tobytes())
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_idx_files(tmp_path: Path, compress: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 28, 28)).astype(np.uint8)
    suffix = ".gz" if compress else ""
    raw = tmp_path / "MNIST" / "raw"
    path = write_idx(raw / f"train-images-idx3-ubyte{suffix}", images, compress)
    write_idx(raw / f"train-labels-idx1-ubyte{suffix}", np.arange(11, dtype=np.uint8), compress)
    for source in (tmp_path, raw, path):
        dataset = packed(source, tmp_path / f"out-{source.name}", image_size=None)
        np.testing.assert_array_equal(np.stack([dataset.read(i) for i in range(11)])[..., 0], images)
        with tarfile.open(tmp_path / f"out-{source.name}" / "images-000000.tar") as archive:
            assert json.loads(archive.extractfile("00000003.json").read()) == {"label": 3}  # type: ignore[union-attr]


def test_torchvisions_root_may_hold_one_of_the_sets_like_mnist(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
    write_idx(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte", images)
    assert len(packed(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", image_size=None)) == 3
    write_idx(tmp_path / "KMNIST" / "raw" / "train-images-idx3-ubyte", images)
    with pytest.raises(ValueError, match=r"several sets: .*FashionMNIST.*KMNIST"):
        open_source(tmp_path)


def test_damaged_and_lying_idx_files_are_refused(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8), dtype=np.uint8)
    path = write_idx(tmp_path / "train-images-idx3-ubyte", images)
    data = path.read_bytes()
    for bad, words in (
        (data[:-1], "damaged"),
        (data + b"x", "damaged"),
        (data[:4] + b"\xff" * 12, "claims shape"),
        (data[:7], "claims shape"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=words):
            open_source(path)


def test_cifar_binaries_and_the_published_archive(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 32, 32)).astype(np.uint8)
    folder = tmp_path / "in" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for batch in range(5):
        records = b"".join(bytes([batch]) + images[batch * 2 + i].tobytes() for i in range(2))
        (folder / f"data_batch_{batch + 1}.bin").write_bytes(records)
    (folder / "test_batch.bin").write_bytes(b"\0" * 3073)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-bin")
    for source in (tmp_path / "in", tmp_path / "cifar-10-binary.tar.gz"):
        dataset = packed(source, tmp_path / f"out-{source.name}", image_size=None)
        read = np.stack([dataset.read(i) for i in range(10)])
        np.testing.assert_array_equal(read, images.transpose(0, 2, 3, 1))
    (folder / "data_batch_1.bin").write_bytes(b"\0" * 5000)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin has 5000 bytes"):
        open_source(tmp_path / "in")


def cifar_archive(path: Path, names: list[str], **fields: object) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            add(archive, name, bytes(3073))
        if fields:
            add(archive, **fields)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("folder", "fields", "words"),
    [
        ("../", {}, "leaves its folder"),
        ("in/", {"name": "link", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "link, device"),
        ("in/", {"name": "in/data_batch_1.bin", "data": bytes(3073)}, "each once"),
        ("in/", {"name": "other/data_batch_1.bin", "data": bytes(3073)}, "each once"),
    ],
)
def test_hostile_cifar_archives_are_refused(tmp_path: Path, folder: str, fields: dict, words: str) -> None:
    path = cifar_archive(tmp_path / "in.tar.gz", [f"{folder}data_batch_{i}.bin" for i in range(1, 6)], **fields)
    with pytest.raises(ValueError, match=words):
        open_source(path)


def test_a_small_archive_is_not_unpacked_to_a_giant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "_MAX_ARCHIVE_BYTES", 2 << 20)
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 400 << 20
    for size in (0, 4 << 20):
        (tmp_path / "in.tar.gz").write_bytes(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(size)))
        with pytest.raises(ValueError, match=f"header of|more than {2 << 20} bytes"):
            open_source(tmp_path / "in.tar.gz")
