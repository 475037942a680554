"""verify finds every single damage; memory for decoded images is shared, bounded and left by nobody."""

import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.packing.verify import verify
from data_pipeline.storage.codec import decode_into, encode
from data_pipeline.storage.decoded import DecodedImages
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.manifest import Manifest, load_manifest
from data_pipeline.storage.shards import open_dataset
from tests.support.data import encoded, pack_arrays, photo


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    pack_arrays(folder, 12, samples_per_shard=6)
    return folder


def test_verify_passes_a_whole_set_and_reports_progress(packed_folder: Path) -> None:
    reported: list[tuple[int, int]] = []
    assert verify(packed_folder, lambda *numbers: reported.append(numbers)).num_samples == 12
    assert reported == [(6, 12), (12, 12)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.integers(0, 4), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(packed_folder: Path, file: int, place: float, bit: int) -> None:
    names = sorted(path.name for path in packed_folder.iterdir() if path.suffix in (".tar", ".json"))
    names = [name for name in names if name != "report.json"]
    path = packed_folder / names[file]
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        with pytest.raises(ValueError, match=path.name.split(".")[0]):
            verify(packed_folder)
    finally:
        path.write_bytes(whole)


def rewritten(folder: Path, shard: int, **changes: object) -> None:
    """Forge the manifest so that hashes fit: what is left to find is inside."""
    manifest = load_manifest(folder)
    record = manifest.shards[shard]
    fields = {"bytes": (folder / record.name).stat().st_size, "sha256": _sha256(folder / record.name)}
    index = folder / record.index_name
    fields |= {"index_bytes": index.stat().st_size, "index_sha256": _sha256(index)}
    shards = list(manifest.shards)
    shards[shard] = type(record)(**{**vars(record), **fields, **changes})
    number = sum(one.samples for one in shards)
    forged = Manifest(manifest.image_size, 3, number, manifest.preprocessing, tuple(shards), manifest.source)
    (folder / "manifest.json").write_text(forged.to_json())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wrong_size_image_behind_right_hashes_is_named(tmp_path: Path) -> None:
    pack_arrays(tmp_path, 12, samples_per_shard=6, encoding="npy")
    manifest = load_manifest(tmp_path)
    forged = Manifest(9, 3, 12, manifest.preprocessing, manifest.shards, manifest.source)
    (tmp_path / "manifest.json").write_text(forged.to_json())
    with pytest.raises(DamagedDataError, match=r"'00000000' of shard images-000000\.tar cannot be decoded.*expected"):
        verify(tmp_path)
    with open_dataset(tmp_path) as dataset, pytest.raises(DamagedDataError, match="'00000007'"):
        dataset.read(7)


def test_an_index_that_does_not_describe_its_tar_is_found(tmp_path: Path) -> None:
    pack_arrays(tmp_path, 12, samples_per_shard=6)
    index = tmp_path / "images-000001.index.json"
    index.write_text(index.read_text().replace('"00000006"', '"00000099"'))
    rewritten(tmp_path, 1)
    with pytest.raises(DamagedDataError, match=r"index of shard images-000001\.tar does not describe"):
        verify(tmp_path)


def test_a_key_in_two_shards_is_found(tmp_path: Path) -> None:
    pack_arrays(tmp_path, 12, samples_per_shard=6)
    for end in ("tar", "index.json"):
        first, second = tmp_path / f"images-000000.{end}", tmp_path / f"images-000001.{end}"
        second.write_bytes(first.read_bytes().replace(b"images-000000", b"images-000001"))
    rewritten(tmp_path, 1)
    with pytest.raises(DamagedDataError, match=r"images-000001\.tar repeats key '00000000'"):
        verify(tmp_path)


@pytest.mark.parametrize("encoding", ["png", "npy", "jpg"])
def test_samples_are_refused_before_decoding_if_their_size_is_wrong(encoding: str) -> None:
    data = encode(photo(16), encoding)  # type: ignore[arg-type]
    out = np.empty((16, 16, 3), dtype=np.uint8)
    decode_into(data, encoding, out)
    with pytest.raises(ValueError, match="expected"):
        decode_into(data, encoding, np.empty((8, 8, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"."):
        decode_into(data[: len(data) // 2], encoding, out)
    with pytest.raises(ValueError, match=r"."):
        decode_into(b"", encoding, out)


@pytest.mark.parametrize("encoding", ["png", "npy", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_into_any_strides_gives_the_same_pixels(encoding: str, channels: int) -> None:
    image = photo(45, height=45)[..., :channels]
    data = encode(image, encoding)  # type: ignore[arg-type]
    pixels = np.empty((45, 45, channels), dtype=np.uint8)
    planes = np.empty((2, channels, 45, 45), dtype=np.uint8)
    decode_into(data, encoding, pixels)
    decode_into(data, encoding, planes[1].transpose(1, 2, 0))
    np.testing.assert_array_equal(planes[1], pixels.transpose(2, 0, 1))
    wide = np.zeros((45, 90, channels), dtype=np.uint8)
    decode_into(data, encoding, wide[:, ::2])
    np.testing.assert_array_equal(wide[:, ::2], pixels)


class Exploit:
    """Unpickling this makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (self.path,)


def test_a_stored_array_of_pickles_is_refused_unread(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Exploit(str(tmp_path / "owned"))]), allow_pickle=True)
    with pytest.raises(ValueError, match="npy of object"):
        decode_into(buffer.getvalue(), "npy", np.empty((16, 16, 3), dtype=np.uint8))
    assert not (tmp_path / "owned").exists()


def test_a_grey_png_in_a_colour_set_is_refused() -> None:
    with pytest.raises(ValueError, match="mode L"):
        decode_into(encoded(photo(16)[..., 0]), "png", np.empty((16, 16, 3), dtype=np.uint8))


def test_decoded_images_are_kept_and_removed(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    first, second = (DecodedImages("name", images.shape, tmp_path) for _ in range(2))
    assert first.is_shared
    out = np.zeros((4, 4, 3), dtype=np.uint8)
    assert not second.copy_to(2, out)
    first.add(2, images[2])
    assert second.copy_to(2, out)
    np.testing.assert_array_equal(out, images[2])
    first.close()
    assert len(list(tmp_path.rglob("name"))) == 1
    second.close()
    assert not list(tmp_path.rglob("name"))


def _hold(root: str, ready: "multiprocessing.synchronize.Event") -> None:
    images = DecodedImages("name", (5, 4, 4, 3), Path(root))
    images.add(1, np.full((4, 4, 3), 7, dtype=np.uint8))
    ready.set()
    signal.pause()


def test_processes_share_and_what_a_killed_one_left_is_cleared(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    assert ready.wait(60)
    out = np.zeros((4, 4, 3), dtype=np.uint8)
    shared = DecodedImages("name", (5, 4, 4, 3), tmp_path)
    assert shared.copy_to(1, out)
    assert (out == 7).all()
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    other = DecodedImages("name", (5, 4, 4, 3), tmp_path)
    assert other.copy_to(1, out)
    other.close()
    fcntl.flock(shared._descriptor, fcntl.LOCK_UN)  # as if this process had been killed too
    fresh = DecodedImages("name", (5, 4, 4, 3), tmp_path)
    assert not fresh.copy_to(1, out)
    fresh.close()


def test_without_room_for_shared_memory_images_are_private(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    images = DecodedImages("name", (2, 4, 4, 3), tmp_path / "file")
    assert not images.is_shared
    images.add(0, np.ones((4, 4, 3), dtype=np.uint8))
    out = np.zeros((4, 4, 3), dtype=np.uint8)
    assert images.copy_to(0, out)
    assert out.all()


def test_images_are_decoded_once(tmp_path: Path) -> None:
    _, images = pack_arrays(tmp_path, 12, samples_per_shard=6)
    with open_dataset(tmp_path) as dataset:
        for index in range(12):
            dataset.read(index)
        for shard in tmp_path.glob("*.tar"):
            shard.unlink()
        np.testing.assert_array_equal([dataset.read(index) for index in range(12)], images)


_FIELDS = ("image_size", "num_samples", "preprocessing", "source", "shards")


def _with(text: str, name: str, value: object) -> str:
    return json.dumps(json.loads(text) | {name: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace('"num_samples": 12', '"num_samples": 13'), "num_samples"),
        (lambda text: text.replace("images-000000.tar", "../images-0.tar"), "plain file name"),
        (lambda text: text.replace('"image_size": 8', '"image_size": 9'), "changed after packing"),
        (lambda text: text[: len(text) // 2], "not a usable manifest"),
        (lambda text: text.replace('"format_version": 1', '"format_version": 2'), "version 2"),
        (lambda text: "[]", "not a usable manifest"),
        (lambda text: "[" * 200_000, "not a usable manifest"),
        *((lambda text, name=name: _with(text, name, None), "not a usable manifest") for name in _FIELDS),
        *((lambda text, name=name: _with(text, name, 5.5), "not a usable manifest") for name in _FIELDS),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path: Path, change, words: str) -> None:
    pack_arrays(tmp_path, 12)
    path = tmp_path / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=words):
        load_manifest(tmp_path)
