"""The names that other programs give to the parameters of the paper's U-Net, and tensors moved between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from models.config import DiffusionConfig, ModelConfig
from models.networks.table import build_on_meta

ATTENTION_LAYERS = {"query": "q", "key": "k", "value": "v", "projection": "proj_out"}


@dataclass(frozen=True)
class Imported:
    """Weights by our names, and the configs they belong to: what a snapshot is written from."""

    tensors: dict[str, Tensor]
    model: ModelConfig
    diffusion: DiffusionConfig


def pesser_name(name: str, config: ModelConfig) -> str:
    """A parameter of our UNet in pesser/pytorch_diffusion, whose layout is that of the authors' variables."""
    name = re.sub(r"^time_embedding\.dense([12])", lambda match: f"temb.dense.{int(match[1]) - 1}", name)
    name = re.sub(r"^middle_block([12])", r"mid.block_\1", name).replace("middle_attention", "mid.attn_1")
    name = re.sub(r"^(down|up)\.(\d+)\.resample", r"\1.\2.\1sample", name)
    name = name.replace(".blocks.", ".block.").replace(".attentions.", ".attn.")
    name = name.replace(".time_projection.", ".temb_proj.").replace(".shortcut.", ".nin_shortcut.")
    return re.sub(r"\.(query|key|value|projection)\.", lambda match: f".{ATTENTION_LAYERS[match[1]]}.", name)


def diffusers_name(name: str, config: ModelConfig) -> str:
    """A parameter of our UNet in diffusers' UNet2DModel, which counts the way up from the coarsest level."""
    coarsest = len(config.channel_multipliers) - 1
    name = re.sub(r"^time_embedding\.dense", "time_embedding.linear_", name).replace("norm_out", "conv_norm_out")
    name = re.sub(r"^middle_block([12])", lambda match: f"mid_block.resnets.{int(match[1]) - 1}", name)
    name = re.sub(r"^middle_attention", "mid_block.attentions.0", name)
    name = re.sub(r"^(down|up)\.(\d+)\.resample", r"\1.\2.\1samplers.0", name)
    name = re.sub(r"^down\.", "down_blocks.", name)
    name = re.sub(r"^up\.(\d+)", lambda match: f"up_blocks.{coarsest - int(match[1])}", name)
    name = name.replace(".blocks.", ".resnets.").replace(".time_projection.", ".time_emb_proj.")
    name = name.replace(".shortcut.", ".conv_shortcut.").replace(".norm.", ".group_norm.")
    name = re.sub(r"\.(query|key|value)\.", lambda match: f".to_{ATTENTION_LAYERS[match[1]]}.", name)
    return name.replace(".projection.", ".to_out.0.")


def to_theirs(
    tensors: Mapping[str, Tensor], config: ModelConfig, translate: Callable[[str, ModelConfig], str]
) -> dict[str, Tensor]:
    """Our tensors by their names, on the CPU and contiguous."""
    return {translate(name, config): tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def to_ours(
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    translate: Callable[[str, ModelConfig], str],
    origin: str,
) -> dict[str, Tensor]:
    """Their tensors by our names, in our shapes; a 1x1 convolution and a linear layer are the same numbers.

    Raises ValueError if a tensor is missing, left over, of another shape or not made of floats in memory.
    """
    shapes = {name: tensor.shape for name, tensor in build_on_meta(config).state_dict().items()}
    theirs = {name: translate(name, config) for name in shapes}
    odd = sorted(set(theirs.values()) ^ set(tensors))
    if odd:
        state = "is missing" if odd[0] not in tensors else "is unknown"
        raise ValueError(f"{origin} does not fit the layout: {len(odd)} names differ, the first, {odd[0]!r}, {state}")
    for name, shape in shapes.items():
        tensor = tensors[theirs[name]]
        # A 1x1 convolution has two more dimensions than the linear layer of the same numbers.
        if shape not in (tensor.shape, (*tensor.shape, 1, 1)) and tensor.shape != (*shape, 1, 1):
            found = tuple(tensor.shape)
            raise ValueError(f"{origin}: {theirs[name]} has shape {found}, which does not fit {tuple(shape)}")
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{origin}: {theirs[name]} is not a plain tensor of floats but {tensor.dtype}")
    return {name: tensors[theirs[name]].reshape(shape) for name, shape in shapes.items()}


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A state dict from a safetensors or torch file, without running any pickled code.

    Unpacks {"state_dict": ...}, {"model": ...} and {"eps_model": ...}, and strips "module." of DDP. Raises
    ValueError if the file holds anything but tensors.
    """
    if file.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(file)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    # torch raises many kinds for files that are not its own, among them KeyError and pickle's errors.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is not a torch file of plain tensors: {reason}") from error
    for key in ("state_dict", "model", "eps_model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    is_state = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not is_state or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} is not a state dict: give a file that maps parameter names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
