"""A tiny snapshot: a network of random weights for colour images of 8 pixels, and 20 timesteps."""

from pathlib import Path

import torch

from models.config import DiffusionConfig, ModelConfig
from models.networks.table import build_model
from models.snapshot import write_snapshot

TINY = ModelConfig(
    image_size=8, base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=()
)


def tiny_snapshot(path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model(TINY)
    # A fresh network predicts zero for everything.
    torch.nn.init.normal_(model.get_parameter("conv_out.weight"), std=0.05)
    write_snapshot(path, model.state_dict(), TINY, DiffusionConfig(num_timesteps=20), {"step": 3})
    return path
