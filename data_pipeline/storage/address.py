"""Addresses of data sets, http(s):// and s3://: what is usable, and what of them may be shown."""

from urllib.parse import urlsplit

from common import redaction


def is_remote(path: str) -> bool:
    """Whether a data path is a URL."""
    return "://" in path


def shown_address(url: str) -> str:
    """A URL without user, password and query, fit for logs."""
    return redaction.redacted(url).replace("***@", "").partition("?")[0].partition("#")[0]


def scheme_of(url: str) -> str:
    """ValueError for a URL that no try could reach."""
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            f"data path {shown_address(url)!r} names no usable host; expected is http(s)://host/path or s3://..."
        )
    return parts.scheme


def first_line(error: BaseException) -> str:
    """What an error says, without the secrets of the URLs in it."""
    return redaction.redacted(_raw_first_line(error))


def _raw_first_line(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer within the stall timeout"
    if getattr(error, "status", 0):  # aiohttp's text repeats the URL with its secrets
        return f"HTTP status {error.status}"  # type: ignore[attr-defined]
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
