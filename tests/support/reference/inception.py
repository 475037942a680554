"""A small TorchScript file with the interface of the published Inception file, which tests cannot download."""

import hashlib
import warnings
from pathlib import Path

import torch
from torch import nn

from eval.metrics.weights import INCEPTION_FILE


class Layers(nn.Module):
    """(B, 3, 299, 299) normalised -> (B, 2048), as the published file's `layers`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 9, stride=6)
        self.wide = nn.Linear(24 * 16, 2048)
        self.pool = nn.AdaptiveAvgPool2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.wide(self.pool(torch.relu(self.conv(x))).flatten(1)))


class StandIn(nn.Module):
    """The published file's interface: resizes by itself, gives features or probabilities of 1008 classes."""

    def __init__(self):
        super().__init__()
        self.layers = Layers()
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        x = nn.functional.interpolate(img.to(torch.float32), size=(299, 299), mode="bilinear", align_corners=False)
        features = self.layers((x - 128) / 128)
        if return_features:
            return features
        logits = nn.functional.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(1)


def make_inception(folder: Path) -> str:
    """Write the stand-in where the published file would lie; its sha256."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.jit.script(StandIn().eval()).save(str(folder / INCEPTION_FILE))
    return hashlib.sha256((folder / INCEPTION_FILE).read_bytes()).hexdigest()
