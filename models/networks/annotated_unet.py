"""The U-Net of labml.ai's annotated DDPM tutorial, as it is, so that its weights and results can be compared.

Where it differs from the paper's (docs/FIDELITY.md): multipliers are cumulative, downsampling pads on all sides,
upsampling is a transposed convolution, attention has a norm that it never applies, the last norm has 8 groups.
Parameter names are the tutorial's. With base_channels 64, multipliers (1, 2, 2, 4) and attention at the last of
four levels it has the tutorial's 167,777,987 parameters.
"""

from __future__ import annotations

import itertools
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import NUM_GROUPS, ModelConfig
from models.kernels.dropout import Dropout, MaskSource
from models.networks.blocks import check_input, check_norms, sinusoidal_embedding

NUM_FINAL_GROUPS = 8


class AnnotatedUNet(nn.Module):
    """eps_theta(x_t, t) by the tutorial's network. See models.networks.table.build_model for shapes and dtypes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_norms(config, cumulative_channels(config))
        self.config = config
        base = config.base_channels
        time_channels = 4 * base
        self.image_proj = nn.Conv2d(config.image_channels, base, 3, padding=1)
        self.time_emb = TimeEmbedding(base, time_channels)
        self.down = nn.ModuleList(_down_modules(config, time_channels))
        self.middle = MiddleBlock(cumulative_channels(config)[-1], time_channels, config.dropout)
        self.up = nn.ModuleList(_up_modules(config, time_channels))
        self.norm = nn.GroupNorm(NUM_FINAL_GROUPS, base)
        self.final = nn.Conv2d(base, config.image_channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, masks: MaskSource | None = None) -> Tensor:
        check_input(x_t, t, self.config)
        time_features = self.time_emb(t)
        hidden = self.image_proj(x_t.to(self.image_proj.weight.dtype))
        skips = [hidden]
        for module in self.down:
            hidden = self._run(module, hidden, time_features, masks)
            skips.append(hidden)
        hidden = self._run(self.middle, hidden, time_features, masks)
        for module in self.up:
            if not isinstance(module, Upsample):
                hidden = torch.cat((hidden, skips.pop()), dim=1)
            hidden = self._run(module, hidden, time_features, masks)
        return self.final(F.silu(self.norm(hidden))).to(x_t.dtype)

    def _run(self, module: nn.Module, hidden: Tensor, time_features: Tensor, masks: MaskSource | None) -> Tensor:
        if self.config.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(module, hidden, time_features, masks, use_reentrant=False)
        return module(hidden, time_features, masks)


class TimeEmbedding(nn.Module):
    """The paper's embedding of the timestep: [sin, cos] features, dense, swish, dense."""

    def __init__(self, channels: int, time_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.lin1 = nn.Linear(channels, time_channels)
        self.lin2 = nn.Linear(time_channels, time_channels)

    def forward(self, t: Tensor) -> Tensor:
        features = sinusoidal_embedding(t, self.channels, self.lin1.weight.dtype)
        return self.lin2(F.silu(self.lin1(features)))


class ResidualBlock(nn.Module):
    """The paper's residual block with the tutorial's names and GroupNorm's default epsilon, 1e-5."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NUM_GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NUM_GROUPS, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.time_emb = nn.Linear(time_channels, out_channels)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, time_features: Tensor, masks: MaskSource | None = None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time_emb(F.silu(time_features))[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden)), masks))
        return hidden + self.shortcut(x)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, one head, without the normalisation that its `norm` was meant for."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NUM_GROUPS, channels)
        self.projection = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        query, key, value = self.projection(tokens).unsqueeze(1).chunk(3, dim=-1)
        attended = self.output(F.scaled_dot_product_attention(query, key, value).squeeze(1))
        if self.training:
            # The tutorial never applies this norm. A term that is exactly zero gives its parameters zero
            # gradients, where none at all would stop DDP and ZeRO, which wait for every parameter.
            attended = attended + 0.0 * (self.norm.weight.sum() + self.norm.bias.sum())
        return (attended + tokens).transpose(1, 2).reshape(x.shape)


class Block(nn.Module):
    """A residual block and, at some resolutions, attention."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, dropout: float, attends: bool) -> None:
        super().__init__()
        self.res = ResidualBlock(in_channels, out_channels, time_channels, dropout)
        self.attn = AttentionBlock(out_channels) if attends else nn.Identity()

    def forward(self, x: Tensor, time_features: Tensor, masks: MaskSource | None = None) -> Tensor:
        return self.attn(self.res(x, time_features, masks))


class MiddleBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, time_channels: int, dropout: float) -> None:
        super().__init__()
        self.res1 = ResidualBlock(channels, channels, time_channels, dropout)
        self.attn = AttentionBlock(channels)
        self.res2 = ResidualBlock(channels, channels, time_channels, dropout)

    def forward(self, x: Tensor, time_features: Tensor, masks: MaskSource | None = None) -> Tensor:
        return self.res2(self.attn(self.res1(x, time_features, masks)), time_features, masks)


class Upsample(nn.Module):
    """Double height and width by a transposed convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return self.conv(x)


class Downsample(nn.Module):
    """Halve height and width by a convolution padded on all sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return self.conv(x)


def cumulative_channels(config: ModelConfig) -> tuple[int, ...]:
    """Width of each level in channels, finest first: each multiplier multiplies the width before it."""
    return tuple(itertools.accumulate(config.channel_multipliers, operator.mul, initial=config.base_channels))[1:]


def _down_modules(config: ModelConfig, time_channels: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    channels = config.base_channels
    widths = cumulative_channels(config)
    for level, width in enumerate(widths):
        attends = config.level_resolutions[level] in config.attention_resolutions
        for _ in range(config.num_res_blocks):
            modules.append(Block(channels, width, time_channels, config.dropout, attends))
            channels = width
        if level < len(widths) - 1:
            modules.append(Downsample(width))
    return modules


def _up_modules(config: ModelConfig, time_channels: int) -> list[nn.Module]:
    modules: list[nn.Module] = []
    widths = cumulative_channels(config)
    narrower = (config.base_channels, *widths[:-1])
    for level in reversed(range(len(widths))):
        attends = config.level_resolutions[level] in config.attention_resolutions
        width = widths[level]
        # The last block of a level narrows to the next one's width, before upsampling.
        for out_channels in [width] * config.num_res_blocks + [narrower[level]]:
            # The skip is as wide as the block's output: for the last one it comes from the level's own entrance.
            modules.append(Block(width + out_channels, out_channels, time_channels, config.dropout, attends))
        if level:
            modules.append(Upsample(narrower[level]))
    return modules
