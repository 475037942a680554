"""Real servers for tests: nginx over a folder of packed images, and one that misbehaves on demand."""

import http.server
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def nginx(root: Path) -> Iterator[str]:
    """nginx serving root/html; its URL. /busy/ is html/set/ and refuses more than ten requests a second, /secret/ all.

    Each GET is a line in root/access.log.
    """
    program, port = shutil.which("nginx") or "/usr/sbin/nginx", free_port()
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
    command = [program, "-p", str(root), "-c", str(root / "nginx.conf"), "-e", str(root / "error.log")]
    process = subprocess.Popen(command)
    try:
        _wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def fetched(root: Path, name: str) -> int:
    """How often nginx was asked for a file of that name."""
    return sum('"GET' in line and f"/{name} " in line for line in (root / "access.log").read_text().splitlines())


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    pytest.fail("the server did not start")


class MisbehavingServer(socketserver.ThreadingTCPServer):
    """Serves a folder; each GET for a tar is answered with the next of `faults`, other requests properly."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Misbehaving)
        self.folder, self.faults, self.released = folder, list[str](), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set"


@contextmanager
def misbehaving(folder: Path) -> Iterator[MisbehavingServer]:
    server = MisbehavingServer(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


@contextmanager
def asking_for_tokens(folder: Path) -> Iterator[str]:
    """A server over a folder that forbids everything below /set/ asked for without ?token=1; its URL."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/set/") and not self.path.endswith("?token=1"):
                self.send_error(403)
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Misbehaving(socketserver.BaseRequestHandler):
    server: MisbehavingServer

    def handle(self) -> None:
        request = self.request.recv(65536).decode()
        method, path, _ = request.split(" ", 2)
        body = (self.server.folder / path.rsplit("/", 1)[1]).read_bytes()
        faults = self.server.faults
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
                self.server.released.wait(20)
            return
        for start in range(0, len(body), 20) if fault == "trickle" else ():
            self.request.sendall(body[start : start + 20])
            self.server.released.wait(0.05)
        if fault not in ("reset", "trickle"):
            self.request.sendall(body)
