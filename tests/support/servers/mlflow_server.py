"""MLflow's own web application, served by a thread of the test, and what may come between it and who asks."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

Answer = Callable[[Response | None], Response]
"""From what MLflow has answered, None if it was not asked, to what the client gets."""
_HTML = "<html><body>Bad gateway</body></html>"


def _torn(answer: Response | None) -> Response:
    """Half of the JSON, as a whole HTTP body."""
    text = answer.get_data(as_text=True) if answer else '{"run": {"info": {"run_id": "3a1f"}}}'
    return Response(text[: max(1, len(text) // 2)], content_type="application/json")


GARBAGE: dict[str, Answer] = {
    "500": lambda answer: Response('{"error_code": "INTERNAL_ERROR", "message": "no"}', 500),
    "429": lambda answer: Response("slow down", 429, {"Retry-After": "0"}),
    "page": lambda answer: Response(_HTML, content_type="text/html"),
    "page of 404": lambda answer: Response(_HTML, 404, content_type="text/html"),
    "page of 502": lambda answer: Response(_HTML, 502, content_type="text/html"),
    "torn": _torn,
}


@dataclass
class MlflowServer:
    """uri is where it listens. `before` and `after` see each request that the store has not, or has, worked on."""

    uri: str = ""
    before: Callable[[Request], Answer | None] = field(default=lambda request: None)
    after: Callable[[Request], Answer | None] = field(default=lambda request: None)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """MLflow over the database `folder`/mlflow.db; one request at a time."""
    from mlflow.server import app, handlers

    given = MlflowServer()
    handlers._tracking_store = handlers._tracking_store_registry.get_store(
        f"sqlite:///{folder}/mlflow.db", str(folder / "mlartifacts")
    )

    def between(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        request.get_data(cache=True, parse_form_data=False)
        if (answer := given.before(request)) is not None:
            return answer(None)(environ, start_response)
        done = app.test_client().open(
            request.full_path, method=request.method, data=request.get_data(), headers=list(request.headers)
        )
        response = Response(done.get_data(), done.status_code, content_type=done.content_type)
        answer = given.after(request)
        return (answer(response) if answer else response)(environ, start_response)

    server = make_server("127.0.0.1", 0, between)
    given.uri = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield given
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        handlers._tracking_store = None
