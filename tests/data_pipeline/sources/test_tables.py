"""Images in Parquet files and LMDBs."""

import datetime
import importlib
import time
from pathlib import Path

import pytest

from tests.support.data import encoded, photo
from tests.support.sources import assert_photos, packed


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
def test_a_label_that_is_not_json_is_refused_by_name(tmp_path: Path, label: object) -> None:
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


@pytest.mark.parametrize("key", ["a//b", "a/./b", "a/"])
def test_a_key_of_an_lmdb_that_a_tar_cannot_hold_as_it_is_gets_its_hex(tmp_path: Path, key: str) -> None:
    lmdb = importlib.import_module("lmdb")
    with lmdb.open(str(tmp_path / "in"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(key.encode(), encoded(photo(16, 0)))
        transaction.put(b"a/b", encoded(photo(16, 1)))
    time.sleep(0.02)
    for _ in range(2):  # packing again finds its keys again
        dataset = packed(tmp_path / "in", tmp_path / "out")
    assert {dataset.key(index) for index in range(2)} == {"a/b", key.encode().hex()}
