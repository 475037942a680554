"""The U-Net of Ho et al. 2020 (appendix B): predicts the noise in x_t, given x_t and the timestep t.

Stages of residual blocks at falling resolution, a middle with self-attention, and the same stages going up again
with skip connections; group normalisation throughout, the timestep added into every residual block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.config import NUM_GROUPS, ModelConfig

GROUP_NORM_EPSILON = 1e-6


class UNet(nn.Module):
    """eps_theta(x_t, t). See models.config.build_model for shapes and dtypes.

    Works in float64 and bfloat16 too, under autocast, and in channels_last memory format. Other image sizes
    than the configured one are accepted if every level can be halved.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        base = config.base_channels
        time_channels = 4 * base
        self.time_embedding = TimeEmbedding(base, time_channels)
        self.conv_in = nn.Conv2d(config.image_channels, base, 3, padding=1)
        self.down = nn.ModuleList()
        skips = [base]
        channels = base
        for level, (width, attends, last) in enumerate(_levels(config)):
            inputs = [channels] + [width] * (config.num_res_blocks - 1)
            leave = None if last else Downsample(width)
            self.down.append(Stage(inputs, width, time_channels, config.dropout, attends, leave))
            skips += [width] * (config.num_res_blocks + (0 if last else 1))
            channels = config.level_channels[level]
        self.middle_block1 = ResidualBlock(channels, channels, time_channels, config.dropout)
        self.middle_attention = AttentionBlock(channels)
        self.middle_block2 = ResidualBlock(channels, channels, time_channels, config.dropout)
        climbing = []
        for level, (width, attends, _) in reversed(list(enumerate(_levels(config)))):
            inputs = []
            for _ in range(config.num_res_blocks + 1):
                inputs.append(channels + skips.pop())
                channels = width
            climb = Upsample(width) if level else None
            climbing.append(Stage(inputs, width, time_channels, config.dropout, attends, climb))
        # Kept by level like `down`; forward walks them from the coarsest.
        self.up = nn.ModuleList(reversed(climbing))
        self.norm_out = _group_norm(channels)
        self.conv_out = nn.Conv2d(channels, config.image_channels, 3, padding=1)
        self._initialise()

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        check_input(x_t, t, self.config)
        time_features = self.time_embedding(t)
        hidden = self.conv_in(x_t.to(self.conv_in.weight.dtype))
        skips = [hidden]
        for stage in stages(self.down):
            for block, attention in stage.pairs():
                hidden = self._residual(block, attention, hidden, time_features)
                skips.append(hidden)
            if stage.resample is not None:
                hidden = stage.resample(hidden)
                skips.append(hidden)
        hidden = self._residual(self.middle_block1, self.middle_attention, hidden, time_features)
        hidden = self._residual(self.middle_block2, None, hidden, time_features)
        for stage in reversed(stages(self.up)):
            for block, attention in stage.pairs():
                hidden = torch.cat((hidden, skips.pop()), dim=1)
                hidden = self._residual(block, attention, hidden, time_features)
            if stage.resample is not None:
                hidden = stage.resample(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden))).to(x_t.dtype)

    def _residual(
        self, block: nn.Module, attention: nn.Module | None, hidden: torch.Tensor, time_features: torch.Tensor
    ) -> torch.Tensor:
        def run(hidden: torch.Tensor, time_features: torch.Tensor) -> torch.Tensor:
            hidden = block(hidden, time_features)
            return hidden if attention is None else attention(hidden)

        if self.config.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(run, hidden, time_features, use_reentrant=False)
        return run(hidden, time_features)

    def _initialise(self) -> None:
        """Glorot uniform weights and zero biases; zero for the last layer of every residual branch and the output.

        The authors draw those last layers with variance scale 1e-10 (about 1e-6 each) where we write exact
        zeros: the first prediction is then exactly zero, its loss exactly the mean of eps^2.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.constant_(cast(torch.Tensor, module.bias), 0.0)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, AttentionBlock):
                nn.init.zeros_(module.projection.weight)
        nn.init.zeros_(self.conv_out.weight)


class Stage(nn.Module):
    """The blocks of one resolution, one way, and the resampling that leaves it (None at the end)."""

    def __init__(
        self,
        inputs: list[int],
        channels: int,
        time_channels: int,
        dropout: float,
        attends: bool,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(width, channels, time_channels, dropout) for width in inputs)
        self.attentions = nn.ModuleList(AttentionBlock(channels) for _ in inputs if attends)
        self.resample = resample

    def pairs(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Each residual block with the attention that follows it, if any."""
        for number, block in enumerate(self.blocks):
            yield block, self.attentions[number] if len(self.attentions) else None


class ResidualBlock(nn.Module):
    """norm, swish, conv, + projected time, norm, swish, dropout, conv; added to a shortcut (1x1 if widths differ)."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_projection = nn.Linear(time_channels, out_channels)
        self.norm2 = _group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor, time_features: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time_projection(F.silu(time_features))[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return hidden + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map: one head as wide as the map, pre-normalised, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normalised = self.norm(x)
        query, key, value = (_tokens(layer(normalised)) for layer in (self.query, self.key, self.value))
        # Scaled by channels^-0.5, the default of scaled_dot_product_attention.
        attended = F.scaled_dot_product_attention(query, key, value)
        attended = attended.squeeze(1).transpose(1, 2).reshape(x.shape)
        return x + self.projection(attended)


class Downsample(nn.Module):
    """Halve height and width: 3x3 convolution with stride 2, padded on the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # TensorFlow's 'SAME' for even sizes pads (0, 1); symmetric padding would shift every level by a pixel.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width: repeat each pixel, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class TimeEmbedding(nn.Module):
    """[sin, cos] of the timestep at geometric frequencies, then a two-layer perceptron.

    t: (B,) integers -> (B, time_channels) in the parameters' dtype.
    """

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.dense1 = nn.Linear(channels, time_channels)
        self.dense2 = nn.Linear(time_channels, time_channels)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        features = sinusoidal_embedding(t, self.channels, self.dense1.weight.dtype)
        return self.dense2(F.silu(self.dense1(features)))


def sinusoidal_embedding(t: torch.Tensor, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """(B,) timesteps -> (B, channels) in dtype: sin then cos of t * 10000^(-i / (channels / 2 - 1)).

    The angles are computed in float32, as weights of that dtype were trained with, or float64 where asked for.
    """
    half = channels // 2
    precision = torch.promote_types(dtype, torch.float32)
    exponents = -math.log(10000.0) * torch.arange(half, dtype=precision, device=t.device) / (half - 1)
    angles = t.to(precision)[:, None] * exponents.exp()[None, :]
    return torch.cat((angles.sin(), angles.cos()), dim=1).to(dtype)


def check_input(x_t: torch.Tensor, t: torch.Tensor, config: ModelConfig) -> None:
    """Raise ValueError unless x_t: (B, C, H, W) and t: (B,) fit the network of this config."""
    factor = 2 ** (len(config.channel_multipliers) - 1)
    if x_t.dim() != 4 or x_t.shape[1] != config.image_channels or x_t.shape[2] % factor or x_t.shape[3] % factor:
        raise ValueError(
            f"x_t has shape {tuple(x_t.shape)}: this network takes (B, {config.image_channels}, H, W) with H and "
            f"W multiples of {factor}, made for {config.image_size} x {config.image_size}"
        )
    if t.shape != x_t.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}: give one timestep for each of the {x_t.shape[0]} images")


def stages(modules: nn.ModuleList) -> list[Stage]:
    """The stages in a network's `down` or `up`, finest first."""
    return [cast(Stage, module) for module in modules]


def _levels(config: ModelConfig) -> list[tuple[int, bool, bool]]:
    """For each level, finest first: its width, whether it attends, whether it is the last."""
    attends = [resolution in config.attention_resolutions for resolution in config.level_resolutions]
    last = [False] * (len(attends) - 1) + [True]
    return list(zip(config.level_channels, attends, last, strict=True))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NUM_GROUPS, channels, eps=GROUP_NORM_EPSILON)


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, 1 head, H * W tokens, C)."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1)
