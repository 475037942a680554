"""Every kind of source gives the images it holds."""

import datetime
import gzip
import importlib
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sources.open import open_source
from data_pipeline.storage.dataset import Dataset
from tests.support.data import encoded, pack_arrays, photo, tree
from tests.support.sources import packed, photos, write_tar


def assert_photos(dataset: Dataset, number: int, order: list[int] | None = None) -> None:
    for index, seed in enumerate(order or range(number)):
        np.testing.assert_array_equal(dataset.read(index), photo(16, seed))
    assert len(dataset) == number


def test_zip_tar_and_folder_of_the_same_images_pack_to_the_same_bytes(tmp_path: Path) -> None:
    files = photos(9, "faces/{:03d}.png")
    write_tar(tmp_path / "in.tar", files)
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("faces/", b"")
        archive.writestr("faces/list.txt", b"ignored")
        archive.writestr("__MACOSX/faces/._000.png", b"ignored")
        for name, data in files.items():
            archive.writestr(name, data)
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    digests = set()
    for source in ("in", "in.tar", "in.zip"):
        dataset = packed(tmp_path / source, tmp_path / f"out-{source}")
        assert_photos(dataset, 9)
        assert dataset.key(3) == "faces/003"
        digests.add(dataset.manifest.digest)
    assert len(digests) == 1


def test_webdataset_shards_are_resharded_with_their_metadata(tmp_path: Path) -> None:
    for shard in range(2):
        files: dict[str, bytes] = {}
        for i in range(3):
            number = shard * 3 + i
            files |= {
                f"{number:05d}.png": encoded(photo(16, number)),
                f"{number:05d}.json": json.dumps({"n": number}).encode(),
            }
        (tmp_path / "in").mkdir(exist_ok=True)
        write_tar(tmp_path / "in" / f"part-{shard}.tar", files)
    dataset = packed(tmp_path / "in", tmp_path / "out")
    assert_photos(dataset, 6)
    with tarfile.open(tmp_path / "out" / "images-000001.tar") as archive:
        assert json.loads(archive.extractfile("00005.json").read()) == {"n": 5}  # type: ignore[union-attr]


def stored_json(folder: Path) -> dict[str, object]:
    with tarfile.open(folder / "images-000000.tar") as archive:
        names = [name for name in archive.getnames() if name.endswith(".json")]
        return {name: json.loads(archive.extractfile(name).read()) for name in names}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("p.1.png", "p.1.json", "p.2.png", "p.2.json"), {"p_1.json": "p.1.json", "p_2.json": "p.2.json"}),
        (("p.png", "p.seg.png", "p.json"), {"p.json": "p.json"}),
        (("p.seg.png", "p.json"), {"p_seg.json": "p.json"}),
        (("p.png", "p.meta.json"), {"p.json": "p.meta.json"}),
        (("p.1.png", "p.2.png", "p.json"), {}),
        (("p.png", "p.a.json", "p.b.json"), {}),
    ],
)
def test_metadata_goes_with_the_one_image_it_belongs_to(
    tmp_path: Path, names: tuple[str, ...], expected: dict[str, str]
) -> None:
    files = {name: json.dumps(name).encode() if name.endswith("json") else encoded(photo(16)) for name in names}
    packed(write_tar(tmp_path / "in.tar", files), tmp_path / "out")
    assert stored_json(tmp_path / "out") == expected


@pytest.mark.parametrize("text", [b"not json", b"[" * 100_000])
def test_metadata_that_is_no_json_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    write_tar(tmp_path / "in.tar", {"a.png": encoded(photo(16)), "a.json": text})
    with pytest.raises(ValueError, match=r"a\.png: its metadata a\.json is no JSON"):
        packed(tmp_path / "in.tar", tmp_path / "out")


def test_archives_of_a_folder_by_its_dot_give_the_names_without_it(tmp_path: Path) -> None:
    files = photos(3, "./faces//{:03d}.png")
    write_tar(tmp_path / "in.tar", files)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    for source in ("in.tar", "in.zip"):
        dataset = packed(tmp_path / source, tmp_path / f"out-{source}")
        assert_photos(dataset, 3)
        assert [dataset.key(i) for i in range(3)] == ["faces/000", "faces/001", "faces/002"]


def test_our_own_sets_can_be_packed_again_in_other_shards(tmp_path: Path) -> None:
    _, images = pack_arrays(tmp_path / "first", 20)
    dataset = packed(tmp_path / "first", tmp_path / "second", image_size=8, samples_per_shard=3)
    np.testing.assert_array_equal([dataset.read(i) for i in range(20)], images)
    assert len(dataset.manifest.shards) == 7


def test_parquet_of_the_hugging_face_layout(tmp_path: Path) -> None:
    pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    (tmp_path / "in").mkdir()
    for part in range(2):
        rows = [{"bytes": encoded(photo(16, part * 5 + i)), "path": f"{i}.png"} for i in range(5)]
        table = pyarrow.table({"image": rows, "label": list(range(5)), "other": [b"x"] * 5})
        parquet.write_table(table, tmp_path / "in" / f"train-{part}.parquet", row_group_size=2)
    dataset = packed(tmp_path / "in", tmp_path / "out")
    assert_photos(dataset, 10)
    assert dataset.key(6) == "train-1-00000001"
    flat = pyarrow.table({"data": [encoded(photo(16, i)) for i in range(3)]})
    parquet.write_table(flat, tmp_path / "flat.parquet")
    assert_photos(packed(tmp_path / "flat.parquet", tmp_path / "flat"), 3)
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="columns are text"):
        packed(tmp_path / "text.parquet", tmp_path / "none")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"bad\.parquet is not a usable Parquet"):
        packed(tmp_path / "bad.parquet", tmp_path / "none")


@pytest.mark.parametrize("label", [b"x", datetime.date(2020, 1, 1), float("nan")])
def test_a_label_that_is_no_json_is_refused_by_name(tmp_path: Path, label: object) -> None:
    pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    table = pyarrow.table({"image": [{"bytes": encoded(photo(16)), "path": "a"}], "label": [label]})
    parquet.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"in\.parquet, row 0: its label .* cannot be stored as JSON"):
        packed(tmp_path / "in.parquet", tmp_path / "out")


def test_parquet_files_of_one_name_in_two_folders_have_keys_of_their_own(tmp_path: Path) -> None:
    pyarrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    for seed, split in enumerate(("test", "train")):
        (tmp_path / "in" / "default.v1" / split).mkdir(parents=True)
        table = pyarrow.table({"image": [{"bytes": encoded(photo(16, seed)), "path": "a"}]})
        parquet.write_table(table, tmp_path / "in" / "default.v1" / split / "0000.parquet")
    dataset = packed(tmp_path / "in", tmp_path / "out")
    assert_photos(dataset, 2)
    assert [dataset.key(i) for i in range(2)] == [f"default.v1/{split}/0000-00000000" for split in ("test", "train")]


def test_lmdb_of_the_lsun_layout(tmp_path: Path) -> None:
    lmdb = importlib.import_module("lmdb")
    with lmdb.open(str(tmp_path / "in"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for i in range(6):
            transaction.put(f"{i:040x}".encode(), encoded(photo(16, i), "WEBP", lossless=True))
        transaction.put(b"length", b"6")
    dataset = packed(tmp_path / "in", tmp_path / "out")
    assert_photos(dataset, 6)
    assert dataset.key(5) == f"{5:040x}"


def test_a_damaged_value_of_an_lmdb_is_refused_by_name_not_passed_over(tmp_path: Path) -> None:
    lmdb = importlib.import_module("lmdb")
    with lmdb.open(str(tmp_path / "in"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"good", encoded(photo(16)))
        transaction.put(b"holed", bytes(4000))
    with pytest.raises(ValueError, match="1 images were refused, the first is holed"):
        packed(tmp_path / "in", tmp_path / "out")


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


def test_names_of_any_language_and_length_survive(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ["Ünïcödé 顔", "with space", "x" * 200]
    for i, name in enumerate(names):
        (tmp_path / "in" / f"{name}.png").write_bytes(encoded(photo(16, i)))
    dataset = packed(tmp_path / "in", tmp_path / "out")
    assert {dataset.key(i) for i in range(3)} == set(names)


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "pnm", "pbm", "j2k", "jpx", "avif", "heic"])
def test_no_image_is_passed_over_for_a_rare_ending_of_its_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"photo.{suffix}").write_bytes(encoded(photo(16)))
    assert [entry.key for entry in open_source(tmp_path).entries()] == ["photo"]


def test_same_stem_in_one_folder_is_refused_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("cat.png", "cat.jpg"):
        (tmp_path / "in" / name).write_bytes(encoded(photo(16)))
    with pytest.raises(ValueError, match=r"cat\.jpg.*cat\.png.*same key"):
        packed(tmp_path / "in", tmp_path / "out")


def test_unknown_sources_are_named_with_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing does not exist; give a folder"):
        open_source(tmp_path / "missing")
    (tmp_path / "thing.xyz").write_bytes(b"what")
    with pytest.raises(ValueError, match=r"thing\.xyz is; give a folder"):
        open_source(tmp_path / "thing.xyz")
    (tmp_path / "photos.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(ValueError, match=r"cannot be read|not CIFAR"):
        open_source(tmp_path / "photos.tar.gz")
    assert "out" not in tree(tmp_path)
