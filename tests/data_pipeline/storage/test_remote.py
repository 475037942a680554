"""Shards over HTTP from real servers: nginx, and one that misbehaves."""

import logging
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.commands import main
from data_pipeline.loader import BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.packing.verify import verify
from data_pipeline.storage.cache import FileCache
from data_pipeline.storage.dataset import Dataset
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.fetch import FetchSettings
from data_pipeline.storage.shards import open_dataset, read_manifest
from tests.support.data import pack_arrays
from tests.support.servers.data_servers import asking_for_tokens, fetched, misbehaving, nginx

QUICK = FetchSettings(num_attempts=3, backoff_seconds=0.02, stall_seconds=0.4, min_bytes_per_second=2000)


def remote(url: str, cache: Path, cache_bytes: int = 1 << 24, settings: FetchSettings = QUICK) -> Dataset:
    return open_dataset(url, memory_bytes=0, cache_dir=cache, cache_bytes=cache_bytes, fetch=settings)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, np.ndarray]]:
    """nginx serving a packed set: its URL, the folder behind it, the images."""
    root = tmp_path_factory.mktemp("nginx")
    _, images = pack_arrays(root / "html" / "set", 60)
    with nginx(root) as url:
        yield url, root / "html" / "set", images


def assert_reads_all(dataset: Dataset, images: np.ndarray) -> None:
    np.testing.assert_array_equal([dataset.read(index) for index in range(len(images))], images)


@pytest.mark.needs("nginx")
def test_http_gives_the_images_and_fetches_each_shard_once(site: tuple[str, Path, np.ndarray], tmp_path: Path) -> None:
    url, folder, images = site
    (folder.parents[1] / "access.log").write_text("")
    with remote(f"{url}/set", tmp_path / "cache") as dataset:
        assert_reads_all(dataset, images)
        assert_reads_all(dataset, images)
    with remote(f"{url}/set/", tmp_path / "cache") as dataset:
        assert_reads_all(dataset, images)
        assert read_manifest(f"{url}/set") == dataset.manifest
    assert fetched(folder.parents[1], "images-000003.tar") == 1
    assert not list((tmp_path / "cache").glob(".tmp-*"))


@pytest.mark.needs("nginx")
def test_a_stream_over_http_within_a_small_cache(site: tuple[str, Path, np.ndarray], tmp_path: Path) -> None:
    url, _, images = site
    budget = 3 * 20_000
    with remote(f"{url}/set", tmp_path / "cache", cache_bytes=budget) as dataset:
        order = SampleOrder(dataset.manifest.shard_sizes, 0, 6, dataset.manifest.digest)
        with BatchStream(dataset, order, num_threads=2) as stream:
            for _ in range(20):
                batch = next(stream)
                expected = images[order.samples(batch.counters.numpy())].transpose(0, 3, 1, 2)
                np.testing.assert_array_equal(batch.images.numpy(), expected)
                assert FileCache(tmp_path / "cache", budget).total_bytes() <= budget


@pytest.mark.needs("nginx")
def test_a_busy_server_is_asked_again(
    site: tuple[str, Path, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, _, images = site
    patient = FetchSettings(num_attempts=12, backoff_seconds=0.03, max_backoff_seconds=0.2)
    with caplog.at_level(logging.WARNING), remote(f"{url}/busy", tmp_path / "cache", settings=patient) as dataset:
        assert_reads_all(dataset, images)
    assert "503" in caplog.text


@pytest.mark.needs("nginx")
def test_missing_and_forbidden_files_fail_by_name_and_are_not_asked_for_again(
    site: tuple[str, Path, np.ndarray], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, _, _ = site
    with pytest.raises(FileNotFoundError, match=r"nowhere/manifest\.json"):
        remote(f"{url}/nowhere", tmp_path / "cache")
    with pytest.raises(PermissionError, match=r"secret/manifest\.json"):
        remote(f"{url}/secret", tmp_path / "cache")
    assert "failed" not in caplog.text
    with pytest.raises(DamagedDataError, match=r"127\.0\.0\.1:9/x/manifest\.json could not be fetched in 3 tries"):
        remote("http://user:password@127.0.0.1:9/x?token=1", tmp_path / "cache")


@pytest.mark.needs("nginx")
def test_a_shard_replaced_behind_our_back_is_named(site: tuple[str, Path, np.ndarray], tmp_path: Path) -> None:
    url, folder, images = site
    shard = folder / "images-000001.tar"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-1] + b"x")
        with remote(f"{url}/set", tmp_path / "cache") as dataset:
            np.testing.assert_array_equal(dataset.read(5), images[5])
            with pytest.raises(DamagedDataError, match=r"images-000001\.tar.*it was replaced"):
                dataset.read(15)
            shard.write_bytes(whole)
            np.testing.assert_array_equal(dataset.read(15), images[15])
    finally:
        shard.write_bytes(whole)
    assert not list((tmp_path / "cache").glob(".tmp-*"))


@pytest.mark.needs("nginx")
def test_a_damaged_or_deleted_cached_shard_is_fetched_again(site: tuple[str, Path, np.ndarray], tmp_path: Path) -> None:
    url, _, images = site
    with remote(f"{url}/set", tmp_path / "cache") as dataset:
        assert_reads_all(dataset, images)
        for number, damage in enumerate(("flip", "cut", "delete", "empty")):
            path = tmp_path / "cache" / dataset.manifest.shards[number].sha256
            data = bytearray(path.read_bytes())
            data[700] ^= 1
            damages: dict[str, Callable[[], object]] = {
                "flip": partial(path.write_bytes, data),
                "cut": partial(path.write_bytes, data[:2000]),
                "delete": path.unlink,
                "empty": partial(path.write_bytes, b""),
            }
            damages[damage]()
        index = tmp_path / "cache" / dataset.manifest.shards[0].index_sha256
        index.write_bytes(b"{" * index.stat().st_size)
    with remote(f"{url}/set", tmp_path / "cache") as dataset:
        assert_reads_all(dataset, images)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[tuple[str, list[str], np.ndarray]]:
    _, images = pack_arrays(tmp_path / "set", 20)
    with misbehaving(tmp_path / "set") as server:
        yield server.url, server.faults, images


@pytest.mark.parametrize("fault", ["unavailable", "short", "lying short", "long", "stall", "trickle", "reset"])
def test_one_fault_is_survived_and_too_many_are_bounded_and_named(
    faulty: tuple[str, list[str], np.ndarray], tmp_path: Path, fault: str
) -> None:
    url, faults, images = faulty
    faults[:] = [fault, fault]
    with remote(url, tmp_path / "cache") as dataset:
        assert_reads_all(dataset, images)
        assert not faults
    faults[:] = [fault] * 50
    with remote(url, tmp_path / "other") as dataset, pytest.raises(DamagedDataError, match=r"000000\.tar.*in 3 tries"):
        dataset.read(0)
    assert len(faults) == 47
    assert not list((tmp_path / "other").glob(".tmp-*"))


@pytest.mark.parametrize("path", ["none", "none?token=hunter2"])
def test_no_secret_of_an_address_is_ever_shown(
    tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with asking_for_tokens(tmp_path) as url:
        address = f"{url.replace('//', '//user:hunter2@')}/{path}"
        assert main(["verify", address]) == 2
        with pytest.raises(FileNotFoundError) as caught:
            read_manifest(address, QUICK)
    shown = capsys.readouterr()
    assert f"{url}/none/manifest.json cannot be read" in shown.err
    trace = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in shown.out + shown.err + caplog.text + trace


def test_a_query_goes_with_every_file(tmp_path: Path) -> None:
    _, images = pack_arrays(tmp_path / "set", 20)
    with asking_for_tokens(tmp_path) as url:
        for address in (f"{url}/set?token=1", f"{url}/set/?token=1", f"{url}/set/manifest.json?token=1"):
            with remote(address, tmp_path / "cache") as dataset:
                assert_reads_all(dataset, images)
        with pytest.raises(PermissionError, match="set/manifest"):
            remote(f"{url}/set", tmp_path / "cache")


def held(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")}


@pytest.mark.needs("nginx")
def test_shards_are_fetched_ahead_of_need_but_not_beyond_half_of_the_budget(
    site: tuple[str, Path, np.ndarray], tmp_path: Path
) -> None:
    url, _, _ = site
    with remote(f"{url}/set", tmp_path / "cache") as dataset:
        shards = dataset.manifest.shards
    with remote(f"{url}/set", tmp_path / "cache", cache_bytes=5 * shards[0].bytes) as dataset:
        dataset.prefetch(np.array([4, 1, 3, 0]))
        deadline = time.monotonic() + 300
        while len(held(tmp_path / "cache")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        dataset._files._pool.shutdown(wait=True)  # type: ignore[attr-defined]
        assert held(tmp_path / "cache") == {shards[4].sha256, shards[1].sha256}


@pytest.mark.needs("nginx")
def test_verify_and_order_work_on_urls_and_keep_nothing(
    site: tuple[str, Path, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, folder, _ = site
    monkeypatch.setenv("RAYDDPM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["verify", f"{url}/set"]) == 0
    assert capsys.readouterr().out.startswith("ok: 60 samples in 6 shards")
    assert not list(tmp_path.iterdir())
    assert main(["order", f"{url}/set", "--global-batch-size", "4", "--num-steps", "2"]) == 0
    there = capsys.readouterr().out
    assert main(["order", str(folder), "--global-batch-size", "4", "--num-steps", "2"]) == 0
    assert there == capsys.readouterr().out
    shard = folder / "images-000004.tar"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-1] + b"x")
        with pytest.raises(DamagedDataError, match=r"images-000004\.tar could not be fetched.*it was replaced"):
            verify(f"{url}/set", fetch=QUICK)
        shard.unlink()
        assert main(["verify", f"{url}/set"]) == 2
        assert "images-000004.tar" in capsys.readouterr().err
    finally:
        shard.write_bytes(whole)
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
