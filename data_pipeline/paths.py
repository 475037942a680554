"""What a data path may be: a folder, an address, or a demo set, which is packed on first use.

A path "demo:faces?image_size=32&num_images=2000&seed=0" is packed once into a folder of the user's cache.
"""

import fcntl
import os
from pathlib import Path

from data_pipeline.demo.sets import pack_demo, parse_demo_path
from data_pipeline.packing.pack import TaskRunner
from data_pipeline.storage.cache import cache_folder


def resolve_path(path: str | Path, run: TaskRunner | None = None) -> str:
    """Where a data set lies: the folder of a demo set, packed on first use, for "demo:..."; any other path unchanged.

    Safe to call from many processes at once. ValueError for an unknown demo set or option, or a
    cache that cannot be made.
    """
    options = parse_demo_path(str(path))
    if options is None:
        return str(path)
    folder = cache_folder() / "demo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{path} is packed into {folder}, which cannot be made ({error.strerror}): name a folder that can in "
            "RAYDDPM_CACHE"
        ) from error
    # One process packs, the others wait for it; the kernel frees the lock of a process that dies. The folder itself is
    # the lock, as no file can be made where a packed set lies on a read-only disk.
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        dest = folder / options.folder_name
        pack_demo(options, dest, run)
    finally:
        os.close(lock)
    return str(dest)
