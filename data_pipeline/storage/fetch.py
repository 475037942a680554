"""Fetching whole files over http(s):// and s3:// through fsspec: again and again if need be, and checked."""

import io
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from common.checks import check_number, check_whole
from common.files import sha256_of
from data_pipeline.storage.address import first_line, scheme_of, shown_address
from data_pipeline.storage.cache import is_of_this_disk
from data_pipeline.storage.errors import DamagedDataError
from data_pipeline.storage.manifest import MANIFEST_NAME

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 20
_MAX_SMALL_FILE_BYTES = 256 << 20
_PASSING_STATUSES = (408, 425, 429)
"""HTTP refusals that a later try may not meet: timeout, too early, too many requests"""


@dataclass(frozen=True)
class FetchSettings:
    """How hard to try. Raises ValueError for numbers out of range."""

    num_attempts: int = 5
    """Tries for a file before giving up"""
    backoff_seconds: float = 0.5
    """Pause after the first failure, doubled after each further one"""
    max_backoff_seconds: float = 20.0
    """Longest pause"""
    stall_seconds: float = 20.0
    """A connection without a byte for this long is given up"""
    min_bytes_per_second: int = 10_000
    """A slower transfer than this, after stall_seconds, is given up"""
    num_threads: int = 4
    """Files fetched at once, ahead of need"""
    endpoint_url: str | None = None
    """Address of an S3-compatible service; AWS's own, or $AWS_ENDPOINT_URL, if not given"""

    def __post_init__(self) -> None:
        check_whole("num_attempts", self.num_attempts, 1)
        check_whole("num_threads", self.num_threads, 1)
        check_number("stall_seconds", self.stall_seconds, above=0)
        check_number("backoff_seconds", self.backoff_seconds, least=0)


class Fetcher:
    """Reads whole files below a URL, again and again if need be."""

    def __init__(self, url: str, settings: FetchSettings, on_try: Callable[[str], None] = lambda moment: None) -> None:
        """on_try: called with "before" and "after" around every try's transfer; an OSError of its own fails that try.

        ValueError if the URL's scheme is not http, https or s3, or it names no host. A query, such as a token, is sent
        with every file of an http(s):// URL.
        """
        scheme, mark, rest = url.partition("://")
        url = scheme.lower() + mark + rest
        self._is_http = url.startswith("http")
        url, mark, query = url.partition("?") if self._is_http else (url, "", "")
        self.url = url.removesuffix(f"/{MANIFEST_NAME}").rstrip("/")
        self.shown_url = shown_address(self.url)
        self._query = mark + query
        self._settings, self._on_try = settings, on_try
        self._closed = threading.Event()
        self._system, self._root, self._transient = _file_system(self.url, settings)

    def fetch(self, name: str, file: BinaryIO, max_bytes: int, check: Callable[[], None]) -> None:
        """Write a file's bytes into `file`; `check` raises DamagedDataError if they are not the right ones.

        Raises FileNotFoundError or PermissionError at once, DamagedDataError naming the file when all tries failed.
        """
        num_attempts = self._settings.num_attempts
        for attempt in range(num_attempts):
            try:
                file.seek(0)
                self._on_try("before")
                self._copy(name, file, max_bytes)
                self._on_try("after")
                file.truncate()
                check()
                return
            except (FileNotFoundError, PermissionError) as error:
                # Not "from error": a traceback would show the URL with its password.
                raise type(error)(f"{self.shown_url}/{name} cannot be read: {first_line(error)}") from None
            except self._transient as error:
                if isinstance(error, OSError) and is_of_this_disk(error):
                    raise
                if 400 <= getattr(error, "status", 0) < 500 and getattr(error, "status", 0) not in _PASSING_STATUSES:
                    raise PermissionError(f"{self.shown_url}/{name} cannot be read: {first_line(error)}") from None
                failure = error
            _log.warning("fetching %s/%s failed: %s", self.shown_url, name, first_line(failure))
            pause = min(self._settings.backoff_seconds * 2**attempt, self._settings.max_backoff_seconds)
            if attempt + 1 == num_attempts or self._closed.wait(pause):
                break
        raise DamagedDataError(
            f"{self.shown_url}/{name} could not be fetched in {num_attempts} tries; the last failed with: "
            f"{first_line(failure)}"
        ) from None

    def fetch_known(self, name: str, file: BinaryIO, num_bytes: int, sha256: str) -> None:
        """Write a file of known content into `file`, which can be read back. Errors as fetch raises them."""

        def check() -> None:
            actual_bytes = file.tell()
            if actual_bytes != num_bytes:
                raise DamagedDataError(f"got {actual_bytes} bytes, the manifest says {num_bytes}")
            file.seek(0)
            actual = sha256_of(file)
            if actual != sha256:
                raise DamagedDataError(f"its sha256 is {actual}, the manifest says {sha256}: it was replaced")

        self.fetch(name, file, num_bytes, check)

    def fetch_json(self, name: str) -> bytes:
        """The text of a small JSON file, such as the manifest. Errors as fetch raises them."""
        buffer = io.BytesIO()

        def check() -> None:
            try:
                json.loads(buffer.getvalue())
            except ValueError as error:  # cut off on its way, or a proxy's page about an error
                raise DamagedDataError(f"it is not JSON: {error}") from error

        self.fetch(name, buffer, _MAX_SMALL_FILE_BYTES, check)
        return buffer.getvalue()

    def close(self) -> None:
        """End waiting between tries."""
        self._closed.set()

    def _copy(self, name: str, file: BinaryIO, max_bytes: int) -> None:
        settings, started, num_bytes = self._settings, time.monotonic(), 0
        if self._is_http:
            # One streamed request. Without a size fsspec would ask for it first, and take a busy server's 503 for 404.
            options = {"block_size": 0, "size": 1}
        else:
            options = {"block_size": 8 * _CHUNK_BYTES}
        with self._system.open(f"{self._root}/{name}{self._query}", "rb", **options) as remote:
            while chunk := remote.read(_CHUNK_BYTES):
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise DamagedDataError(f"more than the {max_bytes} bytes expected")
                file.write(chunk)
                allowed = settings.stall_seconds + num_bytes / settings.min_bytes_per_second
                if self._closed.is_set() or time.monotonic() - started > allowed:
                    raise TimeoutError(f"slower than {settings.min_bytes_per_second} bytes/s, or closed")


def _file_system(url: str, settings: FetchSettings) -> tuple[Any, str, tuple[type[Exception], ...]]:
    """fsspec's file system for a URL, the path in it, and the errors after which trying again makes sense."""
    import fsspec

    scheme = scheme_of(url)
    transient: tuple[type[Exception], ...] = (OSError, TimeoutError, EOFError, DamagedDataError)
    try:
        if scheme in ("http", "https"):
            import aiohttp

            stall = settings.stall_seconds
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall, sock_read=stall)
            system = fsspec.filesystem(scheme, client_kwargs={"timeout": timeout}, skip_instance_cache=True)
            return system, url, (*transient, aiohttp.ClientError)
        if scheme == "s3":
            import botocore.exceptions
            import botocore.session

            config = {"connect_timeout": settings.stall_seconds, "read_timeout": settings.stall_seconds}
            options: dict[str, Any] = {"endpoint_url": settings.endpoint_url} if settings.endpoint_url else {}
            # Without credentials nothing can be signed, and public buckets want no signature.
            options["anon"] = botocore.session.get_session().get_credentials() is None
            system = fsspec.filesystem("s3", config_kwargs=config, skip_instance_cache=True, **options)
            errors = (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError)
            return system, url.removeprefix("s3://"), (*transient, *errors)
    except ImportError as error:
        package = "rayddpm[s3]" if scheme == "s3" else "fsspec[http]"
        raise ValueError(f"reading {scheme}:// needs more packages: pip install '{package}'") from error
    raise ValueError(
        f"data path {shown_address(url)!r} has scheme {scheme!r}; allowed are http, https, s3 or a local folder"
    )
