"""The U-Net of Ho et al. 2020 (appendix B): predicts the noise in x_t, given x_t and the timestep t.

Stages of residual blocks at falling resolution, a middle with self-attention, and the same stages going up again
with skip connections; group normalisation throughout, the timestep added into every residual block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import ModelConfig
from models.kernels.dropout import MaskSource
from models.networks.blocks import (
    AttentionBlock,
    Downsample,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    check_input,
    check_norms,
    group_norm,
)


class UNet(nn.Module):
    """eps_theta(x_t, t). See models.networks.table.build_model for shapes and dtypes.

    Works in float64 and bfloat16 too, under autocast, and in channels_last memory format. Other image sizes
    than the configured one, and other sides than squares, are accepted if every level can be halved.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_norms(config, level_channels(config))
        self.config = config
        base = config.base_channels
        time_channels = 4 * base
        self.time_embedding = TimeEmbedding(base, time_channels)
        self.conv_in = nn.Conv2d(config.image_channels, base, 3, padding=1)
        self.down = nn.ModuleList()
        skips = [base]
        channels = base
        for width, attends, last in _levels(config):
            inputs = [channels] + [width] * (config.num_res_blocks - 1)
            leave = None if last else Downsample(width)
            self.down.append(Stage(inputs, width, time_channels, config.dropout, attends, leave))
            skips += [width] * (config.num_res_blocks + (0 if last else 1))
            channels = width
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
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, config.image_channels, 3, padding=1)
        self._initialise()

    def forward(self, x_t: Tensor, t: Tensor, masks: MaskSource | None = None) -> Tensor:
        check_input(x_t, t, self.config)
        time_features = self.time_embedding(t)
        # The fused kernels work in channels_last, which convolutions hand on.
        memory_format = torch.preserve_format if self.norm_out.fused is None else torch.channels_last
        hidden = self.conv_in(x_t.to(self.conv_in.weight.dtype, memory_format=memory_format))
        skips = [hidden]
        for stage in stages(self.down):
            for block, attention in stage.pairs():
                hidden = self._residual(block, attention, hidden, time_features, masks)
                skips.append(hidden)
            if stage.resample is not None:
                hidden = stage.resample(hidden)
                skips.append(hidden)
        hidden = self._residual(self.middle_block1, self.middle_attention, hidden, time_features, masks)
        hidden = self._residual(self.middle_block2, None, hidden, time_features, masks)
        for stage in reversed(stages(self.up)):
            for block, attention in stage.pairs():
                hidden = torch.cat((hidden, skips.pop()), dim=1)
                hidden = self._residual(block, attention, hidden, time_features, masks)
            if stage.resample is not None:
                hidden = stage.resample(hidden)
        return self.conv_out(self.norm_out(hidden)).to(x_t.dtype)

    def _residual(
        self,
        block: nn.Module,
        attention: nn.Module | None,
        hidden: Tensor,
        time_features: Tensor,
        masks: MaskSource | None,
    ) -> Tensor:
        def run(hidden: Tensor, time_features: Tensor) -> Tensor:
            hidden = block(hidden, time_features, masks)
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
                nn.init.constant_(cast(Tensor, module.bias), 0.0)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, AttentionBlock):
                nn.init.zeros_(module.projection.weight)
        nn.init.zeros_(self.conv_out.weight)


class Stage(nn.Module):
    """The blocks of one resolution on the way down or up, and the resampling that leaves it (None at the end).

    inputs: the number of channels that each residual block takes; all give `channels`.
    """

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


def level_channels(config: ModelConfig) -> tuple[int, ...]:
    """Width of each level in channels, finest first: absolute multiples of base_channels."""
    return tuple(config.base_channels * multiplier for multiplier in config.channel_multipliers)


def stages(modules: nn.ModuleList) -> list[Stage]:
    """The stages in a network's `down` or `up`, finest first."""
    return [cast(Stage, module) for module in modules]


def _levels(config: ModelConfig) -> list[tuple[int, bool, bool]]:
    """For each level, finest first: its width, whether it attends, whether it is the last."""
    attends = [resolution in config.attention_resolutions for resolution in config.level_resolutions]
    last = [False] * (len(attends) - 1) + [True]
    return list(zip(level_channels(config), attends, last, strict=True))
