"""What every feature network does with images: grey ones made RGB, chunks of one fixed size.

An image's features must not depend on the images beside it. Networks run on small chunks of one fixed size (the last
one padded), so the same kernels see the same shapes however the caller batches.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def as_rgb(images: Tensor) -> Tensor:
    """uint8 (B, 1 or 3, H, W) -> (B, 3, H, W), grey replicated. Raises ValueError for anything else.

    Floats are refused: every number here is about images as they would be saved, rounded to 8 bits.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images {images.dtype} {tuple(images.shape)}: uint8 (B, 1 or 3, H, W) is needed")
    return images.expand(-1, 3, -1, -1)


def in_chunks(function: Callable[[Tensor], Tensor], images: Tensor, chunk_images: int) -> Tensor:
    """Apply `function` to chunks of exactly `chunk_images` images, the last one padded -> (B, D) float64, CPU."""
    outputs = []
    for chunk in images.split(chunk_images):
        missing = chunk_images - len(chunk)
        if missing:
            chunk = torch.cat([chunk, chunk.new_zeros(missing, *chunk.shape[1:])])
        outputs.append(function(chunk)[: chunk_images - missing].double().cpu())
    return torch.cat(outputs)
