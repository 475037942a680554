"""The networks by name, one line for each, and how one is used: in eval mode, on its device, at its image size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from common.checks import check_choice
from models.config import ModelConfig
from models.diffusion import NoiseModel
from models.kernels.dropout import number_layers
from models.networks.annotated_unet import AnnotatedUNet
from models.networks.unet import UNet

NETWORKS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "ddpm": UNet,
    "annotated": AnnotatedUNet,
}
"""`ModelConfig.architecture` -> constructor, which raises ValueError for a config that it cannot build.

A network has the forward of build_model and keeps its config as `config`; its `model.architecture` is written in
run.json and snapshot.json, so a name stays what it is. The config does not know the names: it checks what holds for
every network, and a wrong name is refused here, which is before a run starts because its plan builds the network.
"""


def build_model(config: ModelConfig) -> nn.Module:
    """Build the network with fresh weights, float32, drawn from torch's global generator.

    Its forward takes x_t: (B, C, H, W) float and t: (B,) int64 in [0, T) and returns the predicted noise,
    (B, C, H, W) in x_t's dtype. In training it may be given the source of its dropout's masks as `masks`
    (models/kernels/dropout.py). Raises ValueError if there is no network of that name.
    """
    check_choice("architecture", config.architecture, NETWORKS)
    network = NETWORKS[config.architecture](config)
    number_layers(network)
    return network


def build_on_meta(config: ModelConfig) -> nn.Module:
    """The network without storage for its weights: instant at any size. Raises ValueError as build_model does."""
    with torch.device("meta"):
        return build_model(config)


@contextmanager
def eval_mode(model: NoiseModel) -> Iterator[None]:
    """A network without dropout inside the block, and as it was afterwards; other callables are left alone."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def image_shape(model: Any) -> tuple[int, int, int]:
    """(C, H, W) of a network's images, also inside DistributedDataParallel or torch.compile."""
    return getattr(model, "module", getattr(model, "_orig_mod", model)).config.image_shape


def place(model: NoiseModel, indices: Tensor) -> Tensor:
    """The indices, (B,) int64, on the network's device, where the noise is then made; other callables: as they are."""
    if isinstance(model, nn.Module):
        return indices.to(next((parameter.device for parameter in model.parameters()), indices.device))
    return indices
