"""The web page on Ray Serve, bound to loopback."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eval.backlog import Selection
from eval.protocol import Protocol
from eval.sampling.ray_pool import connect, joins_cluster

_APPLICATION = "rayddpm-evaluations"


def check_port(port: int) -> None:
    """Raises ValueError if the port or the packages cannot be had, as far as can be known without starting Ray."""
    _serve_and_application()
    if not 1 <= port <= 65535:
        raise ValueError(f"port={port}: allowed are 1 to 65535")
    if not joins_cluster():  # there an evaluator that was killed may have left a page, which makes way for ours
        _check_free(port, patience_seconds=0)


def _check_free(port: int, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while error := _in_use(port):
        if time.monotonic() >= deadline:
            raise ValueError(f"port={port}: {error}; give another, or end what listens there")
        time.sleep(0.1)


def _in_use(port: int) -> str:
    """Why nobody can listen there; empty if one can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _serve_and_application() -> tuple[Any, Callable[..., Any]]:
    """Ray Serve, and what builds the page. Raises ValueError if they are not installed."""
    try:
        from ray import serve

        from eval.web.app import build_app
    except ImportError as error:
        raise ValueError("--port needs more packages: pip install 'rayddpm[serve]'") from error
    return serve, build_app


@contextmanager
def serving(storage: Path, protocols: Sequence[Protocol], selection: Selection, port: int) -> Iterator[str]:
    """Serve the page while the context lasts; gives its URL. Raises ValueError if Ray Serve is not installed."""
    serve, build_app = _serve_and_application()
    connect()
    _shut_down_if_only_ours(serve)  # left by an evaluator that was killed; Serve would keep to its port
    if not serve.status().applications:
        _check_free(port, patience_seconds=5)  # the page just ended lets go of it in a moment
    # Built inside the replica: an application holds locks, which cannot travel.
    ingress: Any = serve.ingress(lambda: build_app(storage, protocols, selection))
    page: Any = serve.deployment(ingress(), name="page", ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=32)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(page.bind(), name=_APPLICATION, route_prefix="/")
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        _shut_down_if_only_ours(serve)


def _shut_down_if_only_ours(serve: Any) -> None:
    """End the page, and Serve with it unless it serves others: its proxy would hold the port."""
    if set(serve.status().applications) <= {_APPLICATION}:
        serve.shutdown()
    else:
        serve.delete(_APPLICATION)
