"""Packing: the same bytes however it is done, nothing lost, nothing damaged goes unseen."""

import json
import multiprocessing
import os
import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import Task, pack, run_serially, run_task
from data_pipeline.packing.process_runner import run_in_processes
from data_pipeline.packing.verify import verify
from data_pipeline.packing.writer import ShardNotes
from data_pipeline.sources.source import ArraySource, FolderSource
from data_pipeline.storage.shards import open_dataset
from tests.support.data import encoded, pack_arrays, photo, tree, write_folder

SMALL = PackOptions(image_size=8, samples_per_shard=7)


def test_arrays_come_back_exactly(tmp_path: Path) -> None:
    for encoding in ("png", "npy"):
        for channels in (1, 3):
            dest = tmp_path / f"{encoding}{channels}"
            manifest, images = pack_arrays(dest, 25, channels=channels, encoding=encoding)
            assert (manifest.num_samples, len(manifest.shards), manifest.image_channels) == (25, 3, channels)
            with open_dataset(dest) as dataset:
                np.testing.assert_array_equal([dataset.read(i) for i in range(25)], images)
                assert [dataset.key(i) for i in (0, 24)] == ["00000000", "00000024"]


def test_jpeg_is_close_and_its_quality_matters(tmp_path: Path) -> None:
    images = np.stack([photo(64, seed) for seed in range(4)])
    sizes, errors = {}, []
    for quality in (50, 95):
        manifest = pack(ArraySource(images), tmp_path / str(quality), PackOptions(encoding="jpg", jpeg_quality=quality))
        sizes[quality] = manifest.shards[0].bytes
        with open_dataset(tmp_path / str(quality)) as dataset:
            error = np.abs(dataset.read(1).astype(int) - images[1]).mean()
        errors.append(error)
    assert sizes[50] < sizes[95]
    assert errors[1] < errors[0] * 0.7 < 4


def test_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    manifest, images = pack_arrays(tmp_path / "set", 25)
    urls = [str(tmp_path / "set" / shard.name) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{i:08d}" for i in range(25)]
    np.testing.assert_array_equal([sample["png"] for sample in samples], images)


def test_keys_are_relative_paths_and_metadata_lies_beside(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 5)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    (tmp_path / "in" / "a" / "dotted.name.png").write_bytes(encoded(photo(24)))
    pack(FolderSource(tmp_path / "in"), tmp_path / "out", SMALL)
    with open_dataset(tmp_path / "out") as dataset:
        keys = [dataset.key(i) for i in range(len(dataset))]
    assert keys == ["a/dotted_name", "a/photo000", "a/photo002", "a/photo004", "b/photo001", "b/photo003"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["num_packed"] == 6
    assert report["num_ignored_files"] == 1
    assert report["source_sizes"] == {"24x24": 6}
    source = ArraySource(np.zeros((2, 8, 8), np.uint8), metadata=[b'{"label": 4}', b'{"label": 2}'])
    pack(source, tmp_path / "labelled")
    with tarfile.open(tmp_path / "labelled" / "images-000000.tar") as archive:
        assert archive.getnames() == ["00000000.json", "00000000.png", "00000001.json", "00000001.png"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in archive} == {(0, 0, 0, "", "")}


def test_the_bytes_do_not_depend_on_processes_time_or_place(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 260)
    write_folder(tmp_path / "copy", 260)
    os.utime(tmp_path / "copy" / "a" / "photo000.png", (0, 0))
    options = PackOptions(image_size=8, samples_per_shard=50)

    def backwards(tasks: Sequence[Task]) -> Iterator[ShardNotes]:
        return map(run_task, reversed(tasks))

    pack(FolderSource(tmp_path / "in"), tmp_path / "serial", options, run_serially)
    pack(FolderSource(tmp_path / "copy"), tmp_path / "backwards", options, backwards)
    pack(FolderSource(tmp_path / "in"), tmp_path / "two", options, run_in_processes(2))
    assert tree(tmp_path / "serial") == tree(tmp_path / "backwards") == tree(tmp_path / "two")
    assert not list(tmp_path.rglob(".*"))


def test_the_digest_names_content_and_nothing_else(tmp_path: Path) -> None:
    one, _ = pack_arrays(tmp_path / "one", 12)
    same, images = pack_arrays(tmp_path / "same", 12)
    assert one.digest == same.digest
    images[3, 0, 0, 0] ^= 1
    assert pack(ArraySource(images), tmp_path / "pixel", PackOptions(samples_per_shard=10)).digest != one.digest
    other = pack(ArraySource(images), tmp_path / "cut", PackOptions(samples_per_shard=6))
    assert other.digest != one.digest
    assert one.differences(same) == []
    assert any("images-000000.tar" in line for line in one.differences(other))


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.tar").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        pack(FolderSource(write_folder(tmp_path / "in", 3)), tmp_path / "out", SMALL)
    assert tree(tmp_path / "out") == {"precious.tar": b"mine"}


def _try_to_pack(source: str, dest: str, outcome: "multiprocessing.Queue[str]") -> None:
    try:
        pack(FolderSource(Path(source)), dest, SMALL)
        outcome.put("packed")
    except ValueError as error:
        outcome.put(str(error))


def test_two_packers_do_not_mix(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 9)
    context = multiprocessing.get_context("spawn")
    outcome = context.Queue()

    def with_a_rival(tasks: Sequence[Task]) -> Iterator[ShardNotes]:
        rival = context.Process(target=_try_to_pack, args=(str(tmp_path / "in"), str(tmp_path / "out"), outcome))
        rival.start()
        rival.join()
        return map(run_task, tasks)

    pack(FolderSource(tmp_path / "in"), tmp_path / "out", SMALL, with_a_rival)
    assert "another process is packing" in outcome.get(timeout=120)
    verify(tmp_path / "out")


def test_refused_images_fail_the_pack_by_name_or_are_left_out_on_request(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", 9)
    (source / "a" / "broken.png").write_bytes(encoded(photo(24))[:300])
    (source / "b" / "page.jpg").write_text("<html>")
    with pytest.raises(ValueError, match=re.escape("2 images were refused, the first is a/broken.png")):
        pack(FolderSource(source), tmp_path / "out", SMALL)
    assert not (tmp_path / "out" / "manifest.json").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [refusal["name"] for refusal in report["refused"]] == ["a/broken.png", "b/page.jpg"]
    assert all(refusal["reason"] for refusal in report["refused"])
    manifest = pack(FolderSource(source), tmp_path / "out", PackOptions(8, samples_per_shard=7, skip_refused=True))
    assert manifest.num_samples == 9
    assert manifest.source["num_refused"] == 2
    verify(tmp_path / "out")
    time.sleep(0.02)
    assert pack(FolderSource(source), tmp_path / "out", PackOptions(8, samples_per_shard=7, skip_refused=True))
    with pytest.raises(ValueError, match="without 2 images that were refused"):
        pack(FolderSource(source), tmp_path / "out", SMALL)


def test_nothing_to_pack_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("x")
    with pytest.raises(ValueError, match="no images found"):
        pack(FolderSource(tmp_path / "in"), tmp_path / "out", SMALL)
    (tmp_path / "in" / "bad.png").write_text("x")
    with pytest.raises(ValueError, match=r"all 1 images were refused.*bad\.png"):
        pack(FolderSource(tmp_path / "in"), tmp_path / "out", SMALL)
    with pytest.raises(ValueError, match="--image-size"):
        pack(FolderSource(tmp_path / "in"), tmp_path / "out")


def test_kept_bytes_are_the_bytes_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    fitting = encoded(photo(32), "JPEG", quality=90)
    sources = {
        "fitting.jpg": fitting,
        "large.jpg": encoded(photo(40), "JPEG"),
        "turned.jpg": encoded(Image.fromarray(photo(32)), "JPEG", exif=exif),
        "grey.jpg": encoded(photo(32)[..., 0], "JPEG"),
        "lossless.png": encoded(photo(32)),
    }
    for name, data in sources.items():
        (tmp_path / "in" / name).write_bytes(data)
    pack(FolderSource(tmp_path / "in"), tmp_path / "out", PackOptions(image_size=32, keep_bytes=True))
    with open_dataset(tmp_path / "out") as dataset:
        stored = {dataset.key(i): dataset.read_bytes(i) for i in range(5)}
    assert stored.pop("fitting") == (fitting, "jpg")
    assert {extension for _, extension in stored.values()} == {"png"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["num_kept_bytes"] == 1


def test_options_out_of_range_are_named(tmp_path: Path) -> None:
    source = ArraySource(np.zeros((2, 8, 8), np.uint8))
    for options, words in (
        (PackOptions(jpeg_quality=0), "jpeg_quality"),
        (PackOptions(samples_per_shard=0), "samples_per_shard"),
        (PackOptions(image_size=9999), "image_size"),
        (PackOptions(image_size=0), "image_size"),
        (PackOptions(image_channels=0), "image_channels"),
        (PackOptions(name="../up"), "plain file name"),
        (PackOptions(name="two words"), "plain file name"),
    ):
        with pytest.raises(ValueError, match=words):
            pack(source, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_jpeg_with_odd_bytes_that_would_be_kept_is_encoded_instead(tmp_path: Path) -> None:
    data = encoded(photo(32), "JPEG")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "padded.jpg").write_bytes(data[:-2] + bytes(9) + data[-2:])
    (tmp_path / "in" / "plain.jpg").write_bytes(data)
    pack(FolderSource(tmp_path / "in"), tmp_path / "out", PackOptions(image_size=32, keep_bytes=True))
    with open_dataset(tmp_path / "out") as dataset:
        np.testing.assert_array_equal(dataset.read(0), dataset.read(1))
        assert [dataset.read_bytes(index)[1] for index in (0, 1)] == ["png", "jpg"]
