"""Shards from real servers: nginx over HTTP and moto's S3, whole and misbehaving; and the cache before them."""

import importlib
import logging
import multiprocessing
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from data_pipeline.cache import FileCache
from data_pipeline.dataset import DamagedDataError, Dataset
from data_pipeline.loader import BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.remote import FetchSettings, redacted
from data_pipeline.shards import open_dataset, read_manifest
from tests.data_support import pack_arrays

QUICK = FetchSettings(num_attempts=3, backoff_seconds=0.02, stall_seconds=0.4, min_bytes_per_second=2000)


def remote(url: str, cache: Path, cache_bytes: int = 1 << 24, settings: FetchSettings = QUICK) -> Dataset:
    return open_dataset(url, memory_bytes=0, cache_dir=cache, cache_bytes=cache_bytes, fetch=settings)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail("the server did not start")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, np.ndarray]]:
    """nginx serving a packed set: its URL, the folder behind it, the images."""
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    root, port = tmp_path_factory.mktemp("nginx"), free_port()
    _, images = pack_arrays(root / "html" / "set", 60)
    user = "user root root;" if os.getuid() == 0 else ""  # its workers must be able to read pytest's folder
    (root / "nginx.conf").write_text(
        f"""{user} daemon off; pid {root}/pid; error_log {root}/error.log; events {{}}
        http {{ access_log {root}/access.log; client_body_temp_path {root}/t1; proxy_temp_path {root}/t2;
        fastcgi_temp_path {root}/t3; uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
        limit_req_zone $binary_remote_addr zone=slow:1m rate=10r/s;
        server {{ listen 127.0.0.1:{port}; root {root}/html;
          location /busy/ {{ alias {root}/html/set/; limit_req zone=slow burst=2 nodelay; limit_req_status 503; }}
          location /secret/ {{ return 403; }}
        }} }}"""
    )
    process = subprocess.Popen([nginx, "-p", str(root), "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")])
    try:
        wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}", root / "html" / "set", images
    finally:
        process.terminate()
        process.wait(10)


def assert_reads_all(dataset: Dataset, images: np.ndarray) -> None:
    np.testing.assert_array_equal([dataset.read(index) for index in range(len(images))], images)


@pytest.mark.needs("nginx")
def test_http_gives_the_images_and_fetches_each_shard_once(site: tuple[str, Path, np.ndarray], tmp_path: Path) -> None:
    url, folder, images = site
    log = folder.parents[1] / "access.log"
    log.write_text("")
    with remote(f"{url}/set", tmp_path / "cache") as dataset:
        assert_reads_all(dataset, images)
        assert_reads_all(dataset, images)
    with remote(f"{url}/set/", tmp_path / "cache") as dataset:
        assert_reads_all(dataset, images)
        assert read_manifest(f"{url}/set") == dataset.manifest
    fetched = [line for line in log.read_text().splitlines() if '"GET' in line and "images-000003.tar" in line]
    assert len(fetched) == 1
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
def test_missing_and_forbidden_files_fail_at_once_by_name(site: tuple[str, Path, np.ndarray], tmp_path: Path) -> None:
    url, _, _ = site
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"nowhere/manifest\.json"):
        remote(f"{url}/nowhere", tmp_path / "cache")
    with pytest.raises(PermissionError, match=r"secret/manifest\.json"):
        remote(f"{url}/secret", tmp_path / "cache")
    assert time.monotonic() - started < 5
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
            {
                "flip": partial(path.write_bytes, data),
                "cut": partial(path.write_bytes, data[:2000]),
                "delete": path.unlink,
                "empty": partial(path.write_bytes, b""),
            }[damage]()
        index = tmp_path / "cache" / dataset.manifest.shards[0].index_sha256
        index.write_bytes(b"{" * index.stat().st_size)
    with remote(f"{url}/set", tmp_path / "cache") as dataset:
        assert_reads_all(dataset, images)


class Misbehaving(socketserver.BaseRequestHandler):
    """Answers each GET for a tar with the next of the server's faults, other requests properly."""

    def handle(self) -> None:
        request = self.request.recv(65536).decode()
        method, path, _ = request.split(" ", 2)
        body = (self.server.folder / path.rsplit("/", 1)[1]).read_bytes()  # type: ignore[attr-defined]
        faults: list[str] = self.server.faults  # type: ignore[attr-defined]
        fault = faults.pop(0) if method == "GET" and path.endswith(".tar") and faults else "none"
        if fault == "unavailable":
            self.request.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        if fault == "lying short":
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) // 2}\r\nConnection: close\r\n\r\n"
        if fault == "long":
            head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
            body *= 3
        self.request.sendall(head.encode())
        if method == "HEAD":
            return
        if fault in ("short", "stall", "lying short"):
            self.request.sendall(body[: len(body) // 2])
            if fault == "stall":
                self.server.released.wait(20)  # type: ignore[attr-defined]
            return
        for start in range(0, len(body), 20) if fault == "trickle" else ():
            self.request.sendall(body[start : start + 20])
            self.server.released.wait(0.05)  # type: ignore[attr-defined]
        if fault not in ("reset", "trickle"):
            self.request.sendall(body)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[tuple[str, list[str], np.ndarray]]:
    _, images = pack_arrays(tmp_path / "set", 20)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Misbehaving)
    server.daemon_threads = True
    server.folder, server.faults, server.released = tmp_path / "set", [], threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/set", server.faults, images  # type: ignore[attr-defined]
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


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
    started = time.monotonic()
    with remote(url, tmp_path / "other") as dataset, pytest.raises(DamagedDataError, match=r"000000\.tar.*in 3 tries"):
        dataset.read(0)
    assert time.monotonic() - started < 15
    assert len(faults) == 47
    assert not list((tmp_path / "other").glob(".tmp-*"))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, np.ndarray]]:
    """An S3 endpoint with a packed set in s3://bucket/sets/one."""
    server = importlib.import_module("moto.server")
    s3fs = importlib.import_module("s3fs")
    folder = tmp_path_factory.mktemp("s3")
    _, images = pack_arrays(folder / "one", 30)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "x"),
            ("AWS_SECRET_ACCESS_KEY", "y"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        system = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
        system.mkdir("bucket")
        system.put(str(folder / "one"), "bucket/sets/one", recursive=True)
        yield endpoint, images
    running.stop()


def test_s3_gives_the_images(s3: tuple[str, np.ndarray], tmp_path: Path) -> None:
    endpoint, images = s3
    settings = FetchSettings(endpoint_url=endpoint)
    with remote("s3://bucket/sets/one", tmp_path / "cache", settings=settings) as dataset:
        order = SampleOrder(dataset.manifest.shard_sizes, 0, 6, dataset.manifest.digest)
        with BatchStream(dataset, order) as stream:
            batches = [next(stream) for _ in range(5)]
        assert_reads_all(dataset, images)
    seen = {image.numpy().tobytes() for batch in batches for image in batch.images}
    assert seen == {image.tobytes() for image in images.transpose(0, 3, 1, 2)}
    with pytest.raises(FileNotFoundError, match="bucket/sets/none/manifest"):
        remote("s3://bucket/sets/none", tmp_path / "cache", settings=settings)


def test_other_schemes_are_refused_and_secrets_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="http, https, s3"):
        remote("pipe://cat", tmp_path)
    assert redacted("https://me:pass@host:8/a/b?sig=1#x") == "https://host:8/a/b"


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
    (tmp_path / ".tmp-of-a-dead-process").write_bytes(b"x" * 2000)
    put(cache, 1)
    assert cache.total_bytes() == 1000


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
