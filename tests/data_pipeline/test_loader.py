"""The stream of batches: the right images at the right step, whatever the threads; an error stops it by name."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.loader import BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.storage.dataset import Dataset
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.shards import open_dataset
from tests.support.data import pack_arrays


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("set")
    return folder, pack_arrays(folder, 50)[1]


def order_of(dataset: Dataset, batch: int = 12, seed: int = 3) -> SampleOrder:
    manifest = dataset.manifest
    return SampleOrder(manifest.shard_sizes, seed, batch, manifest.digest)


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize(("num_threads", "num_prefetch"), [(1, 1), (3, 2), (5, 7)])
def test_batches_follow_the_order_whatever_the_threads(
    packed_folder: tuple[Path, np.ndarray], num_threads: int, num_prefetch: int, memory_bytes: int
) -> None:
    folder, images = packed_folder
    with open_dataset(folder, memory_bytes=memory_bytes) as dataset:
        order = order_of(dataset)
        with BatchStream(dataset, order, 1, 3, 5, num_threads, num_prefetch) as stream:
            for step in range(5, 25):
                batch = next(stream)
                counters = order.counters(step, 1, 3)
                assert batch.step == step
                np.testing.assert_array_equal(batch.counters.numpy(), counters)
                assert batch.images.dtype == torch.uint8
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                expected = images[order.samples(counters)].transpose(0, 3, 1, 2)
                np.testing.assert_array_equal(batch.images.numpy(), expected)


@pytest.mark.parametrize(("world_size", "samples_per_shard"), [(3, 10), (7, 50), (4, 17), (1, 1)])
def test_ranks_together_see_every_image_once_an_epoch(tmp_path: Path, world_size: int, samples_per_shard: int) -> None:
    """Also with fewer shards than workers and with uneven shards."""
    _, images = pack_arrays(tmp_path, 50, samples_per_shard=samples_per_shard)
    with open_dataset(tmp_path) as dataset:
        order = order_of(dataset, batch=10)
        streams = [BatchStream(dataset, order, rank, world_size, num_threads=2) for rank in range(world_size)]
        seen = np.concatenate([next(stream).images.numpy() for _ in range(5) for stream in streams])
        for stream in streams:
            stream.close()
    seen_rows = {row.tobytes() for row in seen}
    assert seen_rows == {row.tobytes() for row in images.transpose(0, 3, 1, 2)}
    assert len(seen) == len(images)


def test_a_stream_opened_at_a_step_continues_another(packed_folder: tuple[Path, np.ndarray]) -> None:
    with open_dataset(packed_folder[0]) as dataset:
        with BatchStream(dataset, order_of(dataset)) as first:
            batches = [next(first) for _ in range(8)]
        with BatchStream(dataset, order_of(dataset), start_step=5) as second:
            again = [next(second) for _ in range(3)]
    for before, after in zip(batches[5:], again, strict=True):
        assert before.step == after.step
        assert torch.equal(before.images, after.images)


def test_memory_of_a_batch_is_reused_only_when_nobody_holds_it(packed_folder: tuple[Path, np.ndarray]) -> None:
    folder, images = packed_folder
    with open_dataset(folder) as dataset:
        order = order_of(dataset)
        with BatchStream(dataset, order, num_prefetch_batches=1) as stream:
            held = [next(stream).images[:1].permute(0, 2, 3, 1) for _ in range(10)]
            addresses = {next(stream).images.data_ptr() for _ in range(10)}
    assert len(addresses) <= 3
    for step, view in enumerate(held):
        np.testing.assert_array_equal(view[0].numpy(), images[order.samples(order.counters(step))[0]])


def flip_a_byte(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def test_a_flipped_byte_stops_the_stream_with_shard_and_key(tmp_path: Path) -> None:
    pack_arrays(tmp_path, 50)
    flip_a_byte(tmp_path / "images-000002.tar", 600)
    with open_dataset(tmp_path, memory_bytes=0) as dataset:
        stream = BatchStream(dataset, order_of(dataset), num_threads=3)
        with pytest.raises(DamagedDataError, match=r"sample '00000020' of shard images-000002\.tar is damaged"):
            list(zip(range(6), stream, strict=False))
        with pytest.raises(ValueError, match="closed"):
            next(stream)


def test_missing_short_and_foreign_shards_are_named_at_the_start(tmp_path: Path) -> None:
    pack_arrays(tmp_path, 50)
    shard = tmp_path / "images-000001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    with pytest.raises(DamagedDataError, match=r"images-000001\.tar has \d+ bytes, packed were"):
        open_dataset(tmp_path)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"images-000001\.tar is missing"):
        open_dataset(tmp_path)
    shard.write_bytes(whole)
    index = tmp_path / "images-000001.index.json"
    index.write_bytes(index.read_bytes().replace(b"00000011", b"00000010"))
    # Without memory that other tests with the same images may share.
    with (
        open_dataset(tmp_path, memory_bytes=0) as dataset,
        pytest.raises(DamagedDataError, match=r"images-000001\.tar.*twice"),
    ):
        dataset.read(11)


def test_a_shard_lost_or_cut_while_it_is_used_is_named(tmp_path: Path) -> None:
    _, images = pack_arrays(tmp_path, 20, samples_per_shard=10)
    with open_dataset(tmp_path, memory_bytes=0) as dataset:
        dataset.read(0)
        for name in ("images-000000.tar", "images-000001.tar"):
            (tmp_path / name).rename(tmp_path / f"{name}.lost")
        np.testing.assert_array_equal(dataset.read(1), images[1])  # it is open
        with pytest.raises((FileNotFoundError, DamagedDataError), match=r"images-000001\.tar"):
            dataset.read(10)
        os.truncate(tmp_path / "images-000000.tar.lost", 600)
        with pytest.raises(DamagedDataError, match=r"images-000000\.tar"):
            dataset.read(2)


def test_no_more_shards_are_open_than_a_process_may_have(tmp_path: Path) -> None:
    _, images = pack_arrays(tmp_path, 200, samples_per_shard=1)
    before = len(os.listdir("/proc/self/fd"))
    with open_dataset(tmp_path, memory_bytes=0) as dataset:
        order = order_of(dataset, batch=10)
        with BatchStream(dataset, order, num_threads=3) as stream:
            for _ in range(20):
                batch = next(stream)
                expected = images[order.samples(batch.counters.numpy())].transpose(0, 3, 1, 2)
                np.testing.assert_array_equal(batch.images.numpy(), expected)
        assert 60 < len(os.listdir("/proc/self/fd")) - before < 70
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_data_set_than_expected_is_refused(tmp_path: Path) -> None:
    manifest, _ = pack_arrays(tmp_path / "one", 20)
    other, _ = pack_arrays(tmp_path / "two", 21)
    with open_dataset(tmp_path / "one", expected_digest=manifest.digest) as dataset:
        with pytest.raises(ValueError, match=other.digest):
            open_dataset(tmp_path / "one", expected_digest=other.digest)
        order = SampleOrder(other.shard_sizes, 0, 4, other.digest)
        with pytest.raises(ValueError, match="the order is that of data set"):
            BatchStream(dataset, order)


def test_closing_ends_the_threads_in_the_middle_of_work(packed_folder: tuple[Path, np.ndarray]) -> None:
    before = set(threading.enumerate())
    with open_dataset(packed_folder[0]) as dataset:
        stream = BatchStream(dataset, order_of(dataset), num_threads=4, num_prefetch_batches=8)
        next(stream)
        assert any(thread.name.startswith("decode") for thread in set(threading.enumerate()) - before)
        stream.close()
        stream.close()
    assert set(threading.enumerate()) <= before


class SlowDataset(Dataset):
    """Reads take a while, and are counted."""

    num_reads = 0

    def read_into(self, index: int, out: np.ndarray) -> None:
        threading.Event().wait(0.1)
        super().read_into(index, out)
        self.num_reads += 1


def test_waiting_is_measured_and_prefetching_hides_it(packed_folder: tuple[Path, np.ndarray]) -> None:
    with open_dataset(packed_folder[0]) as dataset:
        slow = SlowDataset(dataset.manifest, dataset._files)
        with BatchStream(slow, order_of(dataset), num_threads=1, num_prefetch_batches=1) as stream:
            next(stream)
            first = stream.wait_seconds
            assert first > 1  # 12 images, a tenth of a second each
            while slow.num_reads < 24:  # a training step, during which the next batch gets ready
                time.sleep(0.01)
            next(stream)
            assert stream.wait_seconds - first < first / 2


def test_wrong_numbers_are_named(packed_folder: tuple[Path, np.ndarray]) -> None:
    with open_dataset(packed_folder[0]) as dataset:
        order = order_of(dataset, batch=4)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"num_threads": 0}, "num_threads"),
            ({"num_prefetch_batches": 0}, "num_prefetch_batches"),
            ({"world_size": 5}, "world_size"),
            ({"rank": 1}, "rank"),
            ({"start_step": -1}, "step"),
        ]
        for settings, words in wrong:
            with pytest.raises(ValueError, match=words):
                BatchStream(dataset, order, **settings)
        with pytest.raises(IndexError, match="sample index"):
            dataset.read(50)


def test_an_error_between_two_batches_ends_the_stream_and_shifts_none(
    packed_folder: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_dataset(packed_folder[0]) as dataset, BatchStream(dataset, order_of(dataset)) as stream:
        next(stream)

        def no_memory(shape: tuple[int, ...]) -> np.ndarray:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(stream, "_recycled", no_memory)
            with pytest.raises(MemoryError):
                next(stream)
        with pytest.raises(ValueError, match="closed"):
            next(stream)
