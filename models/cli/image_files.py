"""Reading images for the likelihood: a folder, or one array file. Nothing is resized."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".npy")


def read_batches(source: Path, shape: tuple[int, int, int], batch_size: int, limit: int | None) -> Iterator[np.ndarray]:
    """Images of a folder, .npz or .npy, in sorted order: (B, C, H, W) uint8, B <= batch_size.

    shape: (C, H, W) that each image must have; a grey image serves a model of 3 channels. limit: the most images to
    read. Raises FileNotFoundError if there is nothing there, ValueError naming an image that does not fit or a packed
    data set, which is read from above.
    """
    batch: list[np.ndarray] = []
    num_read = 0
    for name, image in _images(source):
        if num_read == limit:
            break
        batch.append(_fit(image, shape, name))
        num_read += 1
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
    if num_read == 0:
        raise FileNotFoundError(
            f"{source} holds no images: give a folder of {', '.join(SUFFIXES)} files, or an array of at least one image"
        )


def _images(source: Path) -> Iterator[tuple[str, np.ndarray]]:
    if is_packed(source):
        raise ValueError(f"{source} is a packed data set: measure it by `python -m eval likelihood SNAPSHOT {source}`")
    if source.is_dir():
        for file in sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()):
            yield str(file), _decode(file.read_bytes(), str(file))
    elif source.suffix in (".npz", ".npy") and source.is_file():
        images = load_array(source)
        yield from ((f"{source}, image {number}", image) for number, image in enumerate(images))
    elif source.is_file():
        raise ValueError(f"{source} is neither a folder nor an .npz or .npy file")
    else:
        raise FileNotFoundError(f"{source} does not exist: give a folder of images, or an .npz or .npy file")


def is_packed(source: Path) -> bool:
    """Whether this is what data_pipeline packs, which is read from above: the folder, its manifest, a shard."""
    is_shard = source.suffix == ".tar" and source.is_file()
    return is_shard or (source / "manifest.json").is_file() or any(source.glob("*.tar"))


def load_array(source: Path) -> np.ndarray:
    """What an .npz or .npy file holds: (N, H, W) or (N, H, W, C) uint8. Raises ValueError if that is something else."""
    loaded = _numpy(source, str(source))
    if isinstance(loaded, np.lib.npyio.NpzFile):
        names = loaded.files
        if "images" not in names and len(names) != 1:
            held = ", ".join(names) or "nothing"
            raise ValueError(f"{source} holds {held}: it must hold one array, or one that is named images")
        loaded = _numpy(loaded, str(source), "images" if "images" in names else names[0])
    if loaded.dtype != np.uint8 or loaded.ndim not in (3, 4):
        raise ValueError(f"{source} holds {loaded.dtype} of shape {loaded.shape}: it must be uint8 (N, H, W, C)")
    return loaded


def _numpy(source: Any, name: str, member: str = "") -> Any:
    """What a .npy or .npz holds, or a member of the latter."""
    try:
        return source[member] if member else np.load(source, allow_pickle=False)
    # Of a damaged file NumPy lets out what zlib, its own parser of headers and the allocation of arrays raise.
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, tokenize.TokenError, MemoryError) as error:
        raise ValueError(f"{name} is not a readable array file: {error}") from error


def _decode(content: bytes, name: str) -> np.ndarray:
    """(H, W) or (H, W, C) uint8."""
    if name.lower().endswith(".npy"):
        return _numpy(io.BytesIO(content), name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode not in ("L", "RGB", "P", "1"):
                raise ValueError(f"{name} has colour mode {image.mode}: convert it to 8-bit RGB or grey first")
            return np.asarray(
                image.convert("RGB") if image.mode == "P" else image.convert(image.mode.replace("1", "L"))
            )
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a readable image: {error}") from error


def _fit(image: np.ndarray, shape: tuple[int, int, int], name: str) -> np.ndarray:
    """(C, H, W) uint8 of exactly this shape."""
    channels, height, width = shape
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim == 3 and image.shape[2] == 1 and channels == 3:
        image = image.repeat(3, axis=2)
    if image.shape != (height, width, channels) or image.dtype != np.uint8:
        raise ValueError(
            f"{name} is {image.dtype} of shape {image.shape}, the model's images are uint8 of "
            f"({height}, {width}, {channels}): resize the data set first, `python -m data_pipeline pack` does it"
        )
    return image.transpose(2, 0, 1)
