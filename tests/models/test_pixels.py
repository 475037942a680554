"""Levels and numbers in [-1, 1]: rounded one way, exact the other."""

import pytest
import torch

from models.pixels import from_uint8, to_uint8


def test_levels_are_rounded_not_truncated():
    x = torch.tensor([-2.0, -1.0, -1 + 0.9 / 127.5, 0.0, 1 - 0.4 / 127.5, 1.0, 1.5])
    assert to_uint8(x).tolist() == [0, 0, 1, 128, 255, 255, 255]


def test_every_level_comes_back():
    levels = torch.arange(256, dtype=torch.uint8)
    numbers = from_uint8(levels)
    assert (numbers.dtype, float(numbers[0]), float(numbers[255])) == (torch.float32, -1.0, 1.0)
    assert torch.equal(numbers, levels.float() / 127.5 - 1)
    assert torch.equal(to_uint8(numbers), levels)


def test_what_a_diverged_network_gives_is_no_picture():
    with pytest.raises(ValueError, match="the network has diverged"):
        to_uint8(torch.tensor([0.0, float("nan")]))
