"""The cache before remote shards: its budget, what goes first, and many processes at once."""

import errno
import fcntl
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from data_pipeline.storage.cache import FileCache
from data_pipeline.storage.errors import DamagedDataError


def content(number: int, size: int = 1000) -> bytes:
    return bytes([number]) * size


def put(cache: FileCache, number: int, size: int = 1000) -> Path:
    return cache.get(f"{number:064x}", size, lambda file: _write(file, content(number, size)))


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def test_the_least_recently_used_file_goes_first(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 3500)
    for number in range(3):
        put(cache, number)
        time.sleep(0.02)
    cache._touched.clear()
    put(cache, 0)  # used again
    time.sleep(0.02)
    put(cache, 3)
    assert [cache.path(f"{number:064x}").exists() for number in range(4)] == [True, False, True, True]
    assert cache.total_bytes() == 3000
    with pytest.raises(ValueError, match="does not fit"):
        put(cache, 9, size=4000)


def test_a_failed_fetch_leaves_nothing_and_dead_writers_are_swept(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 2500)

    def fails(file: BinaryIO) -> None:
        file.write(b"half")
        raise DamagedDataError("broken")

    with pytest.raises(DamagedDataError, match="broken"):
        cache.get("a" * 64, 1000, fails)
    assert cache.total_bytes() == 0
    (tmp_path / f".tmp-{'d' * 32}").write_bytes(b"x" * 2000)
    put(cache, 1)
    assert cache.total_bytes() == 1000


def test_the_users_own_files_in_the_folder_are_neither_counted_nor_evicted(tmp_path: Path) -> None:
    names = ["thesis.tex", "f" * 63, "F" * 64, ".tmp-mine", ".tmp-" + "a" * 31, "a" * 65]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 5000)
        os.utime(tmp_path / name, (1, 1))
    cache = FileCache(tmp_path, 2500)
    for number in range(4):
        put(cache, number)
    assert cache.total_bytes() == 2000
    assert all((tmp_path / name).stat().st_size == 5000 for name in names)


def _fill(root: str, seed: int, outcome: "multiprocessing.Queue[str]") -> None:
    cache = FileCache(Path(root), 4200)
    random = np.random.default_rng(seed)
    fetched = 0

    def fetch(number: int, file: BinaryIO) -> None:
        nonlocal fetched
        fetched += 1
        for _ in range(10):
            file.write(content(number, 100))

    largest = 0
    for number in random.integers(0, 8, 150):
        path = cache.get(f"{number:064x}", 1000, partial(fetch, int(number)))
        try:
            if path.read_bytes() != content(int(number)):
                outcome.put(f"wrong content of {number}")
                return
        except FileNotFoundError:
            pass  # evicted already
        largest = max(largest, cache.total_bytes())
    outcome.put("ok" if largest <= 4200 else f"{largest} bytes in the cache")


def test_many_processes_share_a_cache_and_keep_its_budget(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    outcome = context.Queue()
    workers = [context.Process(target=_fill, args=(str(tmp_path), seed, outcome)) for seed in range(4)]
    for worker in workers:
        worker.start()
    results = [outcome.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert results == ["ok"] * 4


def test_a_file_that_is_just_being_created_is_not_taken_for_one_of_a_dead_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads, room for two slow files, and the moment between a file's creation and its lock drawn out."""
    cache, flock = FileCache(tmp_path, 2000), fcntl.flock

    def slow_flock(file: Any, operation: int) -> None:
        if operation == fcntl.LOCK_EX and Path(file.name).name.startswith(".tmp-"):
            time.sleep(0.005)
        flock(file, operation)

    def fetch(file: BinaryIO, number: int) -> None:
        time.sleep(0.005)
        file.write(content(number))

    def work(seed: int) -> None:
        for number in random.Random(seed).choices(range(12), k=20):
            cache.get(f"{number:02x}" * 32, 1000, partial(fetch, number=number))

    monkeypatch.setattr(fcntl, "flock", slow_flock)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert cache.total_bytes() <= 2000


def test_a_file_that_gets_its_name_while_another_looks_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads, room for four files, and the moment between a folder's listing and its sizes drawn out."""
    cache = FileCache(tmp_path, 4000)

    def fetch(file: BinaryIO, number: int) -> None:
        time.sleep(0.004)
        file.write(content(number))

    def slow_listing(folder: Path) -> Iterator[Path]:
        names = os.listdir(folder)
        time.sleep(0.003)
        return iter([folder / name for name in names])

    def work(seed: int) -> int:
        largest = 0
        for number in random.Random(seed).choices(range(12), k=20):
            cache.get(f"{number:02x}" * 32, 1000, partial(fetch, number=number))
            largest = max(largest, cache.total_bytes())
        return largest

    monkeypatch.setattr(Path, "iterdir", slow_listing)
    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(8))) <= 4000


def test_a_cache_that_is_emptied_while_it_is_used_is_filled_again(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 4000)
    put(cache, 1)
    shutil.rmtree(tmp_path / "cache")
    assert put(cache, 1).read_bytes() == content(1)
    assert cache.total_bytes() == 1000


def test_a_file_whose_time_cannot_be_set_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(FileCache(tmp_path, 4000), 1)

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    assert put(FileCache(tmp_path, 4000), 1) == path


def test_a_full_disk_names_the_cache_and_what_to_do(tmp_path: Path) -> None:
    def fetch(file: BinaryIO) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=rf"cache {tmp_path}: No space left on device; make room there"):
        FileCache(tmp_path, 4000).get("a" * 64, 1000, fetch)
    assert not list(tmp_path.glob(".tmp-*"))
