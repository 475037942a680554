"""Fetching from servers that compress, redirect or cut, and onto disks that are full."""

import gzip
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.fetch import Fetcher, FetchSettings
from data_pipeline.storage.shards import open_dataset
from tests.support.data import pack_arrays

QUICK = FetchSettings(num_attempts=3, backoff_seconds=0.02, stall_seconds=5)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder below /set; `ways` says how each of the next requests is answered, all others plainly."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ways, self.num_requests = folder, list[str](), 0
        self.url = f"http://127.0.0.1:{self.server_port}/set"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.num_requests += 1
        way = self.server.ways.pop(0) if self.server.ways else "plain"
        body = (self.server.folder / self.path.rpartition("/")[2]).read_bytes()
        headers = {}
        if way in ("compressed", "compressed and cut"):
            body, headers = gzip.compress(body), {"Content-Encoding": "gzip"}
        if way in ("compressed and cut", "a part"):
            body = body[:-100]
        if way == "a page":
            body = b"<html>busy</html>"
        if way == "moved":
            headers, body = {"Location": f"/other{self.path}"}, b""
        if way == "moved to a file":
            headers, body = (
                {"Location": f"file://{self.server.folder}{self.path.removeprefix('/set')}?token=hunter2"},
                b"",
            )
        self.send_response(302 if "Location" in headers else 206 if way == "a part" else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pack_arrays(tmp_path / "set", 20)
    with Server(tmp_path / "set") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def read_all(url: str, cache: Path) -> np.ndarray:
    with open_dataset(url, memory_bytes=0, cache_dir=cache, cache_bytes=1 << 24, fetch=QUICK) as dataset:
        return np.stack([dataset.read(index) for index in range(len(dataset))])


@pytest.mark.parametrize("way", ["compressed", "compressed and cut", "a part", "a page", "moved"])
def test_any_way_of_answering_gives_the_images_or_is_asked_again(server: Server, tmp_path: Path, way: str) -> None:
    whole = read_all(str(server.folder), tmp_path)
    num_plain = 5  # the manifest, two shards and their indexes
    for place in range(2):
        server.ways, server.num_requests = ["plain"] * place + [way], 0
        np.testing.assert_array_equal(read_all(server.url, tmp_path / f"cache{place}"), whole)
        assert server.num_requests == num_plain + (way != "compressed")


def test_a_redirect_to_another_scheme_is_not_followed_and_its_secrets_not_shown(server: Server, tmp_path: Path) -> None:
    server.ways = ["moved to a file"] * 9
    with pytest.raises(DamagedDataError, match="in 3 tries") as caught:
        read_all(server.url, tmp_path / "cache")
    assert "hunter2" not in str(caught.value)


def test_a_full_disk_is_not_taken_for_a_fault_of_the_server(server: Server) -> None:
    with open("/dev/full", "r+b", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        Fetcher(server.url, QUICK).fetch("manifest.json", file, 1 << 20, lambda: None)
    assert server.num_requests == 1


def test_a_scheme_may_be_written_in_capitals(server: Server, tmp_path: Path) -> None:
    capitals = server.url.replace("http", "HTTP")
    np.testing.assert_array_equal(read_all(capitals, tmp_path / "cache"), read_all(str(server.folder), tmp_path))
    assert Fetcher(f"{capitals}?token=1", QUICK).url == server.url
