"""A second U-Net and a second loss, written plainly from the fact sheet: slow, and sharing no code with models/."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

Weights = Mapping[str, torch.Tensor]


def group_norm(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    batch, channels = x.shape[:2]
    groups = x.reshape(batch, 32, -1)
    centred = groups - groups.mean(-1, keepdim=True)
    groups = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)
    scale, shift = weights[name + ".weight"], weights[name + ".bias"]
    return groups.reshape(x.shape) * scale.view(1, channels, 1, 1) + shift.view(1, channels, 1, 1)


def swish(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def convolve(x: torch.Tensor, weights: Weights, name: str, stride: int = 1, pad=(1, 1, 1, 1)) -> torch.Tensor:
    """Cross-correlation as a sum over the kernel's positions. pad: left, right, top, bottom."""
    kernel, bias = weights[name + ".weight"], weights[name + ".bias"]
    left, right, top, bottom = pad
    padded = x.new_zeros(x.shape[0], x.shape[1], x.shape[2] + top + bottom, x.shape[3] + left + right)
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    height = (padded.shape[2] - kernel.shape[2]) // stride + 1
    width = (padded.shape[3] - kernel.shape[3]) // stride + 1
    total = bias.view(1, -1, 1, 1).expand(x.shape[0], -1, height, width)
    for row in range(kernel.shape[2]):
        for column in range(kernel.shape[3]):
            window = padded[:, :, row : row + stride * height : stride, column : column + stride * width : stride]
            total = total + torch.einsum("bchw,oc->bohw", window, kernel[:, :, row, column])
    return total


def dense(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def residual(x: torch.Tensor, time: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    h = convolve(swish(group_norm(x, weights, name + ".norm1")), weights, name + ".conv1")
    h = h + dense(swish(time), weights, name + ".time_projection")[:, :, None, None]
    h = convolve(swish(group_norm(h, weights, name + ".norm2")), weights, name + ".conv2")
    if x.shape[1] != h.shape[1]:
        x = convolve(x, weights, name + ".shortcut", pad=(0, 0, 0, 0))
    return x + h


def attention(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    h = group_norm(x, weights, name + ".norm")
    q, k, v = (convolve(h, weights, f"{name}.{part}", pad=(0, 0, 0, 0)) for part in ("query", "key", "value"))
    scores = torch.einsum("bchw,bcij->bhwij", q, k) * x.shape[1] ** -0.5
    scores = torch.exp(scores - scores.amax((3, 4), keepdim=True))
    scores = scores / scores.sum((3, 4), keepdim=True)
    h = torch.einsum("bhwij,bcij->bchw", scores, v)
    return x + convolve(h, weights, name + ".projection", pad=(0, 0, 0, 0))


def unet(x: torch.Tensor, t: list[int], weights: Weights, config) -> torch.Tensor:
    """The network of a ModelConfig without dropout, (B, C, H, W) float64."""
    half = config.base_channels // 2
    rows = [[timestep * math.exp(-math.log(10000) * i / (half - 1)) for i in range(half)] for timestep in t]
    features = [[math.sin(a) for a in row] + [math.cos(a) for a in row] for row in rows]
    time = dense(torch.tensor(features, dtype=x.dtype), weights, "time_embedding.dense1")
    time = dense(swish(time), weights, "time_embedding.dense2")
    levels = range(len(config.channel_multipliers))
    attends = [config.image_size // 2**level in config.attention_resolutions for level in levels]
    hs = [convolve(x, weights, "conv_in")]
    for level in levels:
        for block in range(config.num_res_blocks):
            h = residual(hs[-1], time, weights, f"down.{level}.blocks.{block}")
            if attends[level]:
                h = attention(h, weights, f"down.{level}.attentions.{block}")
            hs.append(h)
        if level != levels[-1]:
            hs.append(convolve(hs[-1], weights, f"down.{level}.resample.conv", stride=2, pad=(0, 1, 0, 1)))
    h = residual(hs[-1], time, weights, "middle_block1")
    h = attention(h, weights, "middle_attention")
    h = residual(h, time, weights, "middle_block2")
    for level in reversed(levels):
        for block in range(config.num_res_blocks + 1):
            h = residual(torch.cat([h, hs.pop()], 1), time, weights, f"up.{level}.blocks.{block}")
            if attends[level]:
                h = attention(h, weights, f"up.{level}.attentions.{block}")
        if level != 0:
            doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = convolve(doubled, weights, f"up.{level}.resample.conv")
    assert not hs
    return convolve(swish(group_norm(h, weights, "norm_out")), weights, "conv_out")


def loss(x_0: torch.Tensor, t: list[int], noise: torch.Tensor, weights: Weights, config) -> torch.Tensor:
    """L_simple over a batch, one image at a time: mean over images of the mean over pixels of the squared error."""
    beta = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    total = torch.zeros((), dtype=x_0.dtype)
    for i in range(len(t)):
        alpha_bar = float(np.prod([1 - b for b in beta[: t[i] + 1]]))
        x_t = math.sqrt(alpha_bar) * x_0[i : i + 1] + math.sqrt(1 - alpha_bar) * noise[i : i + 1]
        error = noise[i : i + 1] - unet(x_t, t[i : i + 1], weights, config)
        total = total + (error**2).sum() / error.numel() / len(t)
    return total


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter drawn at random, those of value zero or one at the start too, so that all of them matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 25
            offset = 0.0 if parameter.dim() > 1 else 0.3
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(values / math.sqrt(fan) + offset)
    return model


def perturb(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """PyTorch's own start with every bias and norm moved: all parameters matter, and rounding stays small."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model
