"""Fetching the published Inception weights: by explicit command, resumable, believed only when the sha256 is right."""

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from common.files import sha256_of_file
from eval.metrics.weights import INCEPTION_SHA256

INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
_CHUNK_BYTES = 1 << 20
_STALL_SECONDS = 30.0
_ATTEMPTS = 5

Progress = Callable[[int, int | None], None]
"""(bytes so far, bytes in all if the server says)"""


def fetch(
    path: Path, url: str = INCEPTION_URL, sha256: str = INCEPTION_SHA256, progress: Progress | None = None
) -> bool:
    """Have the file with `sha256` at `path`; False if it was there already. A broken download goes on where it was.

    Raises ValueError if what the server sends is another file, OSError if it cannot be reached.
    """
    if path.is_file() and sha256_of_file(path) == sha256:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    problem: Exception | None = None
    for _ in range(_ATTEMPTS):
        try:
            _download(url, part, progress)
            break
        except urllib.error.HTTPError as error:
            raise OSError(f"{url} answered {error.code} {error.reason}; give another --url") from error
        except (OSError, http.client.HTTPException) as error:
            problem = error
    else:
        raise OSError(f"{url} cannot be read ({problem}); {part} keeps what came, run the command again to go on")
    found = sha256_of_file(part)
    if found != sha256:
        part.unlink()
        raise ValueError(f"{url} sent a file of sha256 {found}, expected is {sha256}; it was thrown away")
    os.replace(part, path)
    return True


def _download(url: str, part: Path, progress: Progress | None) -> None:
    """Append to `part` what is missing of it. Raises OSError when the connection breaks or stalls."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # nothing is missing; the sha256 will tell whether it is the right file
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        done = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")
