"""What one node knows of itself, as plain values: versions, GPUs, compilers, storage, data, MLflow."""

import contextlib
import json
import os
import shutil
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from common.code import installed_versions
from common.files import read_json

PACKAGES = ("torch", "ray", "deepspeed", "mlflow")
_GIB = 2**30
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Asked:
    """What the user wants to have looked at; "" where there is nothing."""

    storage: str = ""
    data: str = ""
    tracking_uri: str = ""
    gpus: bool = False


def look(asked: Asked, token: str) -> dict[str, Any]:
    """Runs on the node. token: the name of the file that the asking process has put into the storage folder; this node
    puts one of its own beside it."""
    found: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": installed_versions(*PACKAGES),
        **_devices(),
        "compilers": {name: shutil.which(name) is not None for name in (os.environ.get("CXX", "g++"), "nvcc")},
    }
    if asked.storage:
        found["storage"] = use_storage(Path(asked.storage), token)
    if asked.data:
        found["data"] = data_digest(asked.data)
    if asked.tracking_uri.startswith(("http://", "https://")):
        found["mlflow"] = _answer(f"{without_user(asked.tracking_uri).rstrip('/')}/health")
    return found


def _devices() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"gpus": [], "cuda": None, "nccl": None}
    has_gpu = torch.cuda.is_available()
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "gpus": [f"{found.name} {found.total_memory / _GIB:.0f} GiB" for found in properties],
        "cuda": torch.version.cuda if has_gpu else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if has_gpu else None,
    }


def use_storage(storage: Path, token: str) -> dict[str, Any]:
    """Write, sync, rename, and see what the asking process wrote, as a checkpoint does."""
    own = storage / f"{token}-{os.uname().nodename}-{os.getpid()}"
    temporary = own.with_name(f"{own.name}.tmp")
    try:
        with open(temporary, "w") as file:
            file.write(token)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, own)
        free_gib = shutil.disk_usage(storage).free / _GIB
        return {"sees": (storage / token).exists(), "wrote": own.name, "free_gib": free_gib, "error": ""}
    except OSError as error:
        return {"sees": False, "wrote": "", "free_gib": None, "error": error.strerror or str(error)}


def remove_traces(storage: Path, token: str) -> None:
    """Delete what was written under `token`."""
    for path in storage.glob(f"{token}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def data_digest(data: str) -> dict[str, str]:
    """The digest in the manifest of a folder, or of an address that needs no password."""
    try:
        if data.startswith(("http://", "https://")):
            with urllib.request.urlopen(f"{data.rstrip('/')}/manifest.json", timeout=_PATIENCE_SECONDS) as answer:
                manifest = json.load(answer)
        else:
            manifest = read_json(Path(data) / "manifest.json")
        return {"digest": str(manifest["digest"]), "error": ""}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {"digest": "", "error": " ".join(str(error).split())[:200] or type(error).__name__}


def _answer(address: str) -> str:
    """ "" if the server answers, else why not."""
    try:
        with urllib.request.urlopen(address, timeout=_PATIENCE_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return str(error)


def without_user(address: str) -> str:
    """A web address without user, password, query and fragment; whether a server answers needs none of them."""
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def unix_seconds() -> float:
    return time.time()
