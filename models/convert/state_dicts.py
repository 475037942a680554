"""State-dict files of two other programs: pesser/pytorch_diffusion and the labml.ai tutorial.

The files hold weights only, so the configuration is read off the shapes; the rest is what those programs use.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.checks import check_whole
from models.config import DiffusionConfig, ModelConfig
from models.convert.names import Imported, pesser_name, read_tensors, to_ours, to_theirs
from models.snapshot import Snapshot, save_tensors

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
ATTENTION_RESOLUTION = 16
TUTORIAL_IMAGE_SIZE = 32


def export_pesser(snapshot: Snapshot, dest: Path) -> None:
    """Write a state-dict file with the names of pesser/pytorch_diffusion. Raises ValueError for another network."""
    _require(snapshot.model_config, "ddpm", "pesser")
    _write_tensors(to_theirs(snapshot.model.state_dict(), snapshot.model_config, pesser_name), dest)


def export_annotated(snapshot: Snapshot, dest: Path) -> None:
    """Write a state-dict file that the tutorial's UNet loads. Raises ValueError for another network."""
    _require(snapshot.model_config, "annotated", "annotated")
    _write_tensors({name: tensor.cpu().contiguous() for name, tensor in snapshot.model.state_dict().items()}, dest)


def import_pesser(source: Path, image_size: int | None = None) -> Imported:
    """Read a pesser/pytorch_diffusion checkpoint. image_size is guessed from attention at 16 x 16 if not given.

    Dropout and variance are not in the file: 0.1 and fixedlarge at 32 pixels, 0 and fixedsmall otherwise, as in
    the authors' scripts. Raises ValueError if the tensors are not this layout.
    """
    file = _one_file(source)
    tensors = read_tensors(file)
    config = _pesser_config(tensors, image_size, file)
    small = config.image_size == TUTORIAL_IMAGE_SIZE
    diffusion = DiffusionConfig(variance="fixedlarge" if small else "fixedsmall")
    return Imported(to_ours(tensors, config, pesser_name, str(file)), config, diffusion)


def import_annotated(source: Path, image_size: int | None = None) -> Imported:
    """Read a state dict of the tutorial's UNet (its eps_model); images of 32 pixels unless image_size is given.

    Raises ValueError if the tensors are not this layout.
    """
    file = _one_file(source)
    tensors = read_tensors(file)
    config = _annotated_config(tensors, TUTORIAL_IMAGE_SIZE if image_size is None else image_size, file)
    return Imported(to_ours(tensors, config, lambda name, _: name, str(file)), config, DiffusionConfig())


def _pesser_config(tensors: Mapping[str, Tensor], image_size: int | None, file: Path) -> ModelConfig:
    base_channels, image_channels = _convolution(tensors, "conv_in.weight", file)
    if image_size is not None:
        check_whole("image_size", image_size, 1)
    levels = _count(tensors, "down.{}.block.0.conv1.weight")
    attending = [level for level in range(levels) if f"down.{level}.attn.0.q.weight" in tensors]
    if image_size is None:
        if len(attending) != 1:
            raise ValueError(
                f"{file} has attention at {len(attending)} levels, so its image size is unknown: give image_size"
            )
        image_size = ATTENTION_RESOLUTION << attending[0]
    widths = [_convolution(tensors, f"down.{level}.block.0.conv1.weight", file)[0] for level in range(levels)]
    return ModelConfig(
        image_size=image_size,
        image_channels=image_channels,
        base_channels=base_channels,
        channel_multipliers=tuple(_ratio(width, base_channels, file) for width in widths),
        num_res_blocks=_count(tensors, "down.0.block.{}.conv1.weight"),
        attention_resolutions=tuple(image_size >> level for level in attending),
        dropout=0.1 if image_size == TUTORIAL_IMAGE_SIZE else 0.0,
    )


def _annotated_config(tensors: Mapping[str, Tensor], image_size: int, file: Path) -> ModelConfig:
    base_channels, image_channels = _convolution(tensors, "image_proj.weight", file)
    levels: list[list[int]] = [[]]
    number = 0
    while f"down.{number}.res.conv1.weight" in tensors or f"down.{number}.conv.weight" in tensors:
        if f"down.{number}.conv.weight" in tensors:
            levels.append([])
        else:
            levels[-1].append(number)
        number += 1
    if not all(levels):
        raise ValueError(f"{file} is not a state dict of the tutorial's U-Net: a level has no residual blocks")
    widths = [base_channels] + [
        _convolution(tensors, f"down.{blocks[0]}.res.conv1.weight", file)[0] for blocks in levels
    ]
    attending = [f"down.{blocks[0]}.attn.projection.weight" in tensors for blocks in levels]
    return ModelConfig(
        architecture="annotated",
        image_size=image_size,
        image_channels=image_channels,
        base_channels=base_channels,
        channel_multipliers=tuple(_ratio(b, a, file) for a, b in itertools.pairwise(widths)),
        num_res_blocks=len(levels[0]),
        attention_resolutions=tuple(image_size >> level for level, attends in enumerate(attending) if attends),
        dropout=0.1,
    )


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many consecutive numbers, from 0, complete the pattern to a tensor's name."""
    number = 0
    while pattern.format(number) in tensors:
        number += 1
    return number


def _ratio(width: int, base: int, file: Path) -> int:
    if width % base:
        raise ValueError(
            f"{file} has a level of {width} channels, which is not a multiple of {base}: not a layout we can read"
        )
    return width // base


def _convolution(tensors: Mapping[str, Tensor], name: str, file: Path) -> tuple[int, int]:
    """(output, input) channels of a convolution's weight, both positive."""
    if name not in tensors or tensors[name].dim() != 4 or not tensors[name].numel():
        first = next(iter(tensors), "nothing")
        raise ValueError(f"{file} has no convolution {name} but {first!r}: it is of another format; check --format")
    return tensors[name].shape[0], tensors[name].shape[1]


def _require(config: ModelConfig, architecture: str, program: str) -> None:
    if config.architecture != architecture:
        raise ValueError(
            f"the snapshot's architecture is {config.architecture}: the format {program} holds {architecture} networks"
        )


def _one_file(source: Path) -> Path:
    """The file itself, or the only state-dict file of a directory."""
    if source.is_file():
        return source
    found = sorted(file for file in source.glob("*") if file.suffix in SUFFIXES) if source.is_dir() else []
    if len(found) != 1:
        state = f"holds {len(found)} weight files" if source.is_dir() else "does not exist"
        raise FileNotFoundError(f"{source} {state}: give one state-dict file ({', '.join(SUFFIXES)})")
    return found[0]


def _write_tensors(tensors: dict[str, Tensor], dest: Path) -> None:
    """Safetensors or, for the suffixes that those programs load, a torch file."""
    if dest.suffix not in SUFFIXES:
        raise ValueError(f"{dest} must end in one of {', '.join(SUFFIXES)}")
    dest.parent.mkdir(parents=True, exist_ok=True)
    if dest.suffix == ".safetensors":
        save_tensors(tensors, dest)
    else:
        torch.save(tensors, dest)
