"""The parts of the U-Net of Ho et al. 2020: residual and attention blocks, resampling, the embedding of the timestep.

Feature maps are (B, C, H, W), time features (B, time_channels), both in the parameters' dtype unless autocast says
otherwise; every part keeps dtype and device. Line numbers are those of the authors' code (docs/FIDELITY.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import NUM_GROUPS, ModelConfig
from models.kernels.dropout import Dropout, MaskSource
from models.kernels.norm import Norm

GROUP_NORM_EPSILON = 1e-6


class ResidualBlock(nn.Module):
    """norm, swish, conv, + projected time, norm, swish, dropout, conv; added to a shortcut (1x1 if widths differ).

    x: (B, in_channels, H, W), time_features: (B, time_channels) -> (B, out_channels, H, W). Ho models/unet.py:37-63.
    """

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_projection = nn.Linear(time_channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor, time_features: Tensor, masks: MaskSource | None = None) -> Tensor:
        hidden = self.conv1(self.norm1(x))
        dropout = self.dropout.of(masks)
        hidden = self.norm2(hidden, self.time_projection(F.silu(time_features)), dropout)
        hidden = self.conv2(self.dropout(hidden) if dropout is None else hidden)
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map: one head as wide as the map, pre-normalised, residual.

    x: (B, channels, H, W) -> the same shape. Ho models/unet.py:66-84.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, silu=False)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm(x)
        query, key, value = (_tokens(layer(normalised)) for layer in (self.query, self.key, self.value))
        # Scaled by channels^-0.5, the default of scaled_dot_product_attention.
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.projection(attended)


class Downsample(nn.Module):
    """Halve height and width: 3x3 convolution with stride 2, padded on the right and the bottom only.

    x: (B, channels, H, W), H and W even -> (B, channels, H / 2, W / 2). Ho models/unet.py:26-34.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # TensorFlow's 'SAME' for even sizes pads (0, 1); symmetric padding would shift every level by a pixel.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: repeat each pixel, then a 3x3 convolution.

    x: (B, channels, H, W) -> (B, channels, 2 H, 2 W). Ho models/unet.py:15-23.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class TimeEmbedding(nn.Module):
    """sinusoidal_embedding of the timestep, then a two-layer perceptron (Ho models/unet.py:99-103).

    t: (B,) integers -> (B, time_channels) in the parameters' dtype.
    """

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dense1 = nn.Linear(channels, time_channels)
        self.dense2 = nn.Linear(time_channels, time_channels)

    def forward(self, t: Tensor) -> Tensor:
        features = sinusoidal_embedding(t, self.channels, self.dense1.weight.dtype)
        return self.dense2(F.silu(self.dense1(features)))


def sinusoidal_embedding(t: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Sines, then cosines, of t * 10000^(-i / (channels / 2 - 1)) for i = 0 ... channels / 2 - 1.

    t: (B,) timesteps, any integer or float dtype. channels: even, at least 4. Returns (B, channels) in dtype. The
    angles are computed in float32, as weights of that dtype were trained with, or float64 where asked for.

    The position encoding of Vaswani et al. 2017, section 3.5, in the variant of the DDPM code (Ho nn.py:90-109).
    Vaswani: sin and cos alternate (channel 2i and 2i + 1), and the exponent is -i / (channels / 2), so that the
    lowest frequency stays above 1/10000. DDPM: all sines come before all cosines, and the exponent's denominator is
    channels / 2 - 1, so that the lowest frequency is 1/10000 exactly.
    """
    half = channels // 2
    precision = torch.promote_types(dtype, torch.float32)
    exponents = -math.log(10000.0) * torch.arange(half, dtype=precision, device=t.device) / (half - 1)
    angles = t.to(precision)[:, None] * exponents.exp()[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1).to(dtype)


def check_input(x_t: Tensor, t: Tensor, config: ModelConfig) -> None:
    """Raise ValueError unless x_t: (B, C, H, W) and t: (B,) fit the network of this config.

    H and W need not be equal nor those of the config: they must be multiples of 2 to the number of downsamplings.
    """
    factor = 2 ** (len(config.channel_multipliers) - 1)
    sides_fit = x_t.dim() == 4 and all(side > 0 and side % factor == 0 for side in x_t.shape[2:])
    if not sides_fit or x_t.shape[1] != config.image_channels:
        raise ValueError(
            f"x_t has shape {tuple(x_t.shape)}: this network takes (B, {config.image_channels}, H, W) with H and "
            f"W multiples of {factor}, made for {config.image_size} x {config.image_size}"
        )
    if not x_t.is_floating_point():
        raise ValueError(f"x_t holds {x_t.dtype}: this network takes floats, images scaled to [-1, 1] with noise")
    if t.shape != x_t.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}: give one timestep for each of the {x_t.shape[0]} images")


def check_norms(config: ModelConfig, widths: Sequence[int]) -> None:
    """Raise ValueError if a level's norms would see one value per group, of which they leave nothing.

    widths: of each level in channels, finest first.
    """
    entering = (config.base_channels, *widths[:-1])
    for *both, resolution in zip(entering, widths, config.level_resolutions, strict=True):
        if resolution == 1 and NUM_GROUPS in both:
            raise ValueError(
                f"a level of 1 x 1 pixels has {NUM_GROUPS} channels, which GroupNorm takes in groups of one value "
                "each: take a larger base_channels, a larger image_size or fewer channel_multipliers"
            )


def group_norm(channels: int, silu: bool = True) -> Norm:
    """The normalisation of every block, and SiLU: 32 groups, epsilon 1e-6 (Ho models/unet.py:11)."""
    return Norm(NUM_GROUPS, channels, GROUP_NORM_EPSILON, silu)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1 head, H * W tokens, C)."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1)
