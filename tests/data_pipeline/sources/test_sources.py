"""Every kind of source gives the images it holds."""

import gzip
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sources.open import open_source
from tests.support.data import encoded, pack_arrays, photo, tree
from tests.support.sources import assert_photos, packed, photos, write_tar


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
def test_metadata_that_is_not_json_is_refused_by_name(tmp_path: Path, text: bytes) -> None:
    write_tar(tmp_path / "in.tar", {"a.png": encoded(photo(16)), "a.json": text})
    with pytest.raises(ValueError, match=r"a\.png: its metadata a\.json is not JSON"):
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
    with pytest.raises(FileNotFoundError, match=r"missing does not exist; give one of: .*a folder of images"):
        open_source(tmp_path / "missing")
    (tmp_path / "thing.xyz").write_bytes(b"what")
    with pytest.raises(ValueError, match=r"thing\.xyz is; give one of: .*a folder of images"):
        open_source(tmp_path / "thing.xyz")
    (tmp_path / "photos.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(ValueError, match=r"cannot be read|not CIFAR"):
        open_source(tmp_path / "photos.tar.gz")
    assert "out" not in tree(tmp_path)


def test_the_hidden_files_of_a_mac_are_not_archives(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "part.tar", photos(3))
    (tmp_path / "in" / "._part.tar").write_bytes(b"\0\5\x16\7")
    assert_photos(packed(tmp_path / "in", tmp_path / "out"), 3)


def test_a_folder_of_two_kinds_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "part.tar", photos(3))
    (tmp_path / "photo.png").write_bytes(encoded(photo(16)))
    with pytest.raises(ValueError, match=r"1 image files beside \.tar files; give one kind at a time"):
        open_source(tmp_path)
    (tmp_path / "photo.png").rename(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=r"\.tar and \.parquet files; give one kind at a time"):
        open_source(tmp_path)
