"""Grids keep the pixels that each command's own code gave before one function made them all."""

import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image

from common.pictures import as_image, tile, write_png
from data_pipeline.packing.report import preview
from eval.sampling.grids import sample_grid
from models.cli.pictures import write_grid


def _images(*shape):
    return (np.arange(np.prod(shape), dtype=np.int64) * 2654435761 >> 7).astype(np.uint8).reshape(shape)


def _digest(pixels):
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("shape", "digest"),
    [
        ((1, 4, 4, 1), "1a327991d1266aef"),
        ((5, 8, 8, 3), "666ff029fbe8209d"),
        ((7, 6, 10, 3), "b2ece9d1a34619c8"),
        ((9, 70, 70, 3), "82eb43bf46488d4d"),
        ((100, 32, 32, 3), "8a7aa8cca6e7c030"),
        ((3, 8, 8, 2), "91e9bb24380ccedf"),
    ],
)
def test_the_grid_of_samples_that_a_command_writes_is_what_it_was(tmp_path, shape, digest):
    write_grid(_images(*shape), tmp_path / "grid.png")
    assert _digest(np.asarray(Image.open(tmp_path / "grid.png"))) == digest


@pytest.mark.parametrize(
    ("shape", "options", "digest"),
    [
        ((1, 4, 4, 1), {}, "d57defaf2965d093"),
        ((5, 8, 8, 3), {}, "444092f1b1270bfe"),
        ((70, 6, 10, 3), {}, "90b26a6bcc7c68c2"),
        ((20, 70, 70, 3), {}, "988c0b53c6623c9d"),
        ((100, 32, 32, 1), {}, "68ec6b93fedaa518"),
        ((20, 70, 70, 3), {"columns": 6, "always": True}, "23fd11f7165b64be"),
        ((3, 600, 600, 3), {}, "4f999255f7113eea"),
    ],
)
def test_the_grid_of_an_evaluation_is_what_it_was(shape, options, digest):
    images = torch.from_numpy(_images(*shape)).permute(0, 3, 1, 2).contiguous()
    assert _digest(np.asarray(sample_grid(images, **options))) == digest


class _Dataset:
    def __init__(self, num_images, size, channels):
        self.images = _images(num_images, size, size, channels)
        self.image_shape = (size, size, channels)

    def __len__(self):
        return len(self.images)

    def read(self, index):
        return self.images[index]


@pytest.mark.parametrize(
    ("shape", "digest"),
    [
        ((1, 4, 1), "8d830e626a9728bb"),
        ((5, 8, 3), "4dca47abc96bec4c"),
        ((70, 8, 3), "06dc8b2100aef300"),
        ((10, 120, 3), "dc65368c2a2f5a31"),
    ],
)
def test_the_preview_of_a_packed_data_set_is_what_it_was(shape, digest):
    assert _digest(preview(_Dataset(*shape))) == digest


def test_a_grid_lays_images_row_by_row_on_white():
    images = np.stack([np.full((1, 2, 3), level, np.uint8) for level in (10, 20, 30)])
    grid = tile(images, num_columns=2, gap=1, border=(0, 1))
    assert grid[..., 0].tolist() == [
        [10, 10, 255, 20, 20, 255],
        [255] * 6,
        [30, 30, 255, 255, 255, 255],
        [255] * 6,
    ]


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path):
    write_png(tmp_path / "a.png", as_image(_images(4, 4, 1)))
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises(OSError, match="cannot write mode"):
        write_png(tmp_path / "a.png", Image.new("HSV", (2, 2)))
    assert (tmp_path / "a.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]
