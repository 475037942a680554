"""Fetching weights: resumed, checked, and never half a file under the final name; imported reference statistics."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from eval.cli.commands import main
from eval.errors import BlockedError
from eval.metrics.fetch import fetch
from eval.metrics.reference import ReferenceCache, reference_folder
from eval.protocol import parse_protocol

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT, with or without ranges, cutting the first `num_cuts` answers short."""

    def __init__(self, ranges=True, num_cuts=0, content=CONTENT):
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges, self.num_cuts, self.content, self.starts = ranges, num_cuts, content, []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.pt"
        return super().__enter__()

    def __exit__(self, *details):
        self.shutdown()
        super().__exit__(*details)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        start = int(asked.split("=")[1].rstrip("-")) if asked and self.server.ranges else 0
        self.server.starts.append(start)
        content = self.server.content
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.server.num_cuts > 0
        self.server.num_cuts -= cut
        self.wfile.write(content[start : start + 100_000] if cut else content[start:])

    def log_message(self, *arguments):
        """Quiet."""


def test_a_file_is_fetched_once_and_then_left(tmp_path):
    with Server() as server:
        assert fetch(tmp_path / "w" / "file.pt", server.url, SHA256)
        assert (tmp_path / "w" / "file.pt").read_bytes() == CONTENT
        assert not fetch(tmp_path / "w" / "file.pt", server.url, SHA256)
        assert server.starts == [0]


def test_a_broken_download_goes_on_where_it_was(tmp_path):
    with Server(num_cuts=2) as server:
        assert fetch(tmp_path / "file.pt", server.url, SHA256)
        assert server.starts == [0, 100_000, 200_000]
    assert (tmp_path / "file.pt").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_a_server_without_ranges_is_read_from_the_start(tmp_path):
    (tmp_path / "file.pt.part").write_bytes(CONTENT[:1000])
    with Server(ranges=False) as server:
        assert fetch(tmp_path / "file.pt", server.url, SHA256)
    assert (tmp_path / "file.pt").read_bytes() == CONTENT


def test_a_part_that_is_complete_needs_no_more_bytes(tmp_path):
    (tmp_path / "file.pt.part").write_bytes(CONTENT)
    with Server() as server:
        assert fetch(tmp_path / "file.pt", server.url, SHA256)
    assert (tmp_path / "file.pt").read_bytes() == CONTENT


def test_another_file_than_the_published_is_thrown_away(tmp_path):
    with Server(content=CONTENT[::-1]) as server, pytest.raises(ValueError, match="thrown away"):
        fetch(tmp_path / "file.pt", server.url, SHA256)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_replaced(tmp_path):
    (tmp_path / "file.pt").write_bytes(CONTENT[:-1])
    with Server() as server:
        assert fetch(tmp_path / "file.pt", server.url, SHA256)
    assert (tmp_path / "file.pt").read_bytes() == CONTENT


def test_a_server_that_is_away_costs_one_line(tmp_path, capsys):
    assert main(["fetch-weights", "--weights-folder", str(tmp_path), "--url", "http://127.0.0.1:9/x"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.fixture
def published(tmp_path):
    random = np.random.default_rng(0)
    mixing = random.normal(size=(2048, 8))
    np.savez(tmp_path / "cifar10_clean_train_32.npz", mu=random.normal(size=2048), sigma=mixing @ mixing.T)
    return tmp_path / "cifar10_clean_train_32.npz"


def test_published_statistics_become_a_protocols_reference(published, tmp_path, capsys):
    storage = tmp_path / "runs"
    assert main(["import-reference", str(published), str(storage), "--num-images", "50000"]) == 0
    name = capsys.readouterr().out.strip()
    protocol = parse_protocol(name)
    assert protocol.name == name
    assert name.startswith("fid_clean_50k_npz")
    assert protocol.bind("e" * 64) == protocol
    found = ReferenceCache(reference_folder(storage)).statistics(protocol, pytest.fail, None, lambda: None)
    data = np.load(published)
    np.testing.assert_allclose(found.covariance, data["sigma"], rtol=1e-12, atol=1e-15)
    assert np.array_equal(found.mean, data["mu"])


def test_statistics_that_were_not_imported_block_instead_of_using_other_images(tmp_path):
    protocol = parse_protocol("fid_clean_50k_npz0123456789abcdef")
    with pytest.raises(BlockedError, match="import-reference"):
        ReferenceCache(tmp_path).statistics(protocol, pytest.fail, None, lambda: None)
    with pytest.raises(ValueError, match="single images"):
        parse_protocol("kid_clean_50k_npz0123456789abcdef")


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("kid_clean_10k", "kid_clean_10k is not a Fréchet distance"),
        ("fd_efficientnet_lite0_5k", "holds mu (2048,) and sigma (2048, 2048), fd_efficientnet_lite0_5k needs (1280,)"),
    ],
)
def test_statistics_that_do_not_fit_the_protocol_are_refused(published, tmp_path, protocol, expected, capsys):
    arguments = ["import-reference", str(published), str(tmp_path), "--num-images", "50000", "--protocol", protocol]
    assert main(arguments) == 2
    assert expected in capsys.readouterr().err
