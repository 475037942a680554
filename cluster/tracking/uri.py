"""Where MLflow is: which tracking URIs a run may name, and where its local database and artifacts lie."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from common.redaction import redacted

_DATABASES = ("postgresql", "mysql", "mssql")
_SERVERS = ("http", "https")
_NOT_IN_URIS = r"\?|%[0-9a-fA-F]{2}"
"""What SQLAlchemy takes for options, or decodes, and MLflow does not."""
_ALLOWED = "sqlite:///PATH, http(s)://HOST, postgresql:// or mysql:// with a driver, or databricks"


def default_tracking_uri(storage: Path) -> str:
    """A SQLite file in the storage folder: no server needed. ValueError for a folder that no such URI can name."""
    if re.search(_NOT_IN_URIS, str(storage)):
        raise ValueError(
            f"run.storage {str(storage)!r} holds a ? or a % before two hexadecimal digits, which MLflow's addresses of "
            "SQLite files cannot: use a folder of another name"
        )
    return f"sqlite:///{storage / 'mlflow.db'}"


def checked_tracking_uri(uri: str, absolute: Callable[[str], str]) -> str:
    """The URI, with the path of a SQLite file made absolute: uploaders and evaluators run in other folders.

    absolute: makes a path absolute, or raises ValueError. Raises ValueError for what MLflow would not take.
    """
    scheme, separator, rest = uri.partition("://")
    database = scheme.partition("+")[0]
    if database == "sqlite" and rest.startswith("/") and (path := rest[1:].partition("?")[0]) not in ("", ":memory:"):
        return f"{scheme}:///{absolute(path)}{rest[1 + len(path) :]}"
    if scheme == "databricks" or (scheme in _SERVERS and _host(uri)) or (database in _DATABASES and rest):
        return uri
    files = "; MLflow 3 keeps no runs in plain files" if scheme == "file" or not separator else ""
    raise ValueError(f"run.tracking_uri {redacted(uri)!r} is none of {_ALLOWED}{files}")


def artifact_location(uri: str) -> str | None:
    """Local artifacts beside a local database; a server chooses its own place."""
    scheme, _, path = uri.partition(":///")
    if scheme.partition("+")[0] != "sqlite":
        return None
    return (Path(unquote(path.partition("?")[0])).absolute().parent / "mlartifacts").as_uri()


def _host(uri: str) -> str | None:
    """The host of a URI; None if it has none, or a port that is not a number."""
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError:
        return None
    return parts.hostname
