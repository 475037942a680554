"""A model snapshot on disk: EMA weights and all that is needed to sample from them, without pickle.

A directory with `ema.safetensors` (float32, named as in the module) and `snapshot.json`, written last: format
version, both configs, size and sha256 of the weights, and a free "provenance" record.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from common.files import read_json, sha256_of_file, write_atomic, write_text_atomic
from models.config import DiffusionConfig, ModelConfig
from models.diffusion import GaussianDiffusion
from models.networks.table import build_on_meta

FORMAT_VERSION = 1
WEIGHTS_NAME = "ema.safetensors"
RECORD_NAME = "snapshot.json"

Config = TypeVar("Config", ModelConfig, DiffusionConfig)


@dataclass(frozen=True)
class Snapshot:
    """A loaded snapshot: the network in eval mode with its weights, the process, and where they come from."""

    model: nn.Module
    diffusion: GaussianDiffusion
    model_config: ModelConfig
    diffusion_config: DiffusionConfig
    provenance: dict[str, Any]


def write_snapshot(
    directory: str | Path,
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    diffusion: DiffusionConfig,
    provenance: dict[str, Any],
) -> None:
    """Write a snapshot into a directory, made if missing; other files in it are left alone.

    tensors: every parameter by its name in the module, any float dtype and device. provenance: JSON values.
    Raises ValueError if names, shapes or dtypes do not fit the model, TypeError if provenance is not JSON; then
    nothing has been written.
    """
    _check_tensors(tensors, model, "the weights to write")
    json.dumps(provenance)
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    # Copies, because safetensors refuses views that share one storage, as sharded engines hand out.
    weights = {
        name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for name, tensor in tensors.items()
    }
    write_atomic(path / WEIGHTS_NAME, lambda file: save_tensors(weights, file))
    record = {
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(model),
        "diffusion": dataclasses.asdict(diffusion),
        "provenance": provenance,
        "weights": {
            "bytes": (path / WEIGHTS_NAME).stat().st_size,
            "sha256": sha256_of_file(path / WEIGHTS_NAME),
        },
    }
    write_text_atomic(path / RECORD_NAME, json.dumps(record, indent=2, sort_keys=True) + "\n")


def load_snapshot(path: str | Path, device: str | torch.device = "cpu") -> Snapshot:
    """Load a snapshot, or the one inside a training checkpoint, onto a device, with its weights in float32.

    Raises FileNotFoundError if there is none, ValueError if it is damaged or of an unknown format.
    """
    model_config, diffusion_config, record = read_record(path)
    file = Path(path) / WEIGHTS_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no {WEIGHTS_NAME}: the snapshot is incomplete; write or copy it again")
    if sha256_of_file(file) != record["weights"]["sha256"]:
        raise ValueError(
            f"{file} is damaged: {file.stat().st_size} bytes whose sha256 is not the recorded one "
            f"({record['weights']['bytes']} bytes expected); copy it again or use another snapshot"
        )
    try:
        tensors = safetensors.torch.load_file(file, device=str(torch.device(device)))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    _check_tensors(tensors, model_config, str(file))
    model = build_on_meta(model_config)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    if torch.device(device).type == "cpu":
        # Measured 1.4 to 1.8 times faster there for small networks; a GPU's GroupNorm would undo the format.
        model.to(memory_format=torch.channels_last)
    diffusion = GaussianDiffusion(diffusion_config)
    return Snapshot(model.eval(), diffusion, model_config, diffusion_config, record["provenance"])


def read_record(path: str | Path) -> tuple[ModelConfig, DiffusionConfig, dict[str, Any]]:
    """The configs and the whole of snapshot.json, without the weights. Raises as load_snapshot does."""
    file = Path(path) / RECORD_NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is not a snapshot: it has no {RECORD_NAME}; give the directory of a checkpoint or snapshot"
        )
    try:
        record = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(record, dict) or "format_version" not in record:
        raise ValueError(f"{file} is damaged: it is not the record of a snapshot, which has a format_version")
    if record["format_version"] != FORMAT_VERSION:
        version = record["format_version"]
        raise ValueError(f"{file} has format version {version!r}; this program reads version {FORMAT_VERSION}")
    for name in ("model", "diffusion", "provenance", "weights"):
        if not isinstance(record.get(name), dict):
            raise ValueError(f"{file} is damaged: it lacks {name}, a JSON object")
    weights = record["weights"]
    if not isinstance(weights.get("sha256"), str) or not isinstance(weights.get("bytes"), int):
        raise ValueError(f"{file} is damaged: it lacks the sha256 and bytes of the weights")
    model = _config(ModelConfig, record["model"], file)
    try:
        _parameter_shapes(model)
    # torch's error for tensors of more elements than it can count.
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{file} holds a network that this program cannot build: {error}") from error
    return model, _config(DiffusionConfig, record["diffusion"], file), record


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write CPU tensors as safetensors, in the form that other programs expect of PyTorch weights.

    Raises OSError if that fails, as on a full disk.
    """
    try:
        # By way of NumPy the same bytes take half the time in Python, which training competes for meanwhile.
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        safetensors.numpy.save_file(arrays, file, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"{file.name} could not be written: {error}") from error
    # The library keeps the file to its owner, but an evaluator may be another user.
    file.chmod(0o644)


def _config(kind: type[Config], values: dict[str, Any], file: Path) -> Config:
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} holds a {kind.__name__} that this program cannot build: {error}") from error


@cache
def _parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Found once: it is half of what saving a small model would take."""
    return {name: tuple(p.shape) for name, p in build_on_meta(config).named_parameters()}


def _check_tensors(tensors: Mapping[str, Tensor], config: ModelConfig, origin: str) -> None:
    expected = _parameter_shapes(config)
    odd = sorted(set(expected) ^ set(tensors))
    if odd:
        state = "is missing" if odd[0] in expected else "does not belong to it"
        raise ValueError(f"{origin} do not fit the model: {len(odd)} names differ, the first, {odd[0]!r}, {state}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"{origin} do not fit the model: {name} is {tuple(tensors[name].shape)}, not {shape}")
        if not tensors[name].is_floating_point():
            raise ValueError(f"{origin} do not fit the model: {name} holds {tensors[name].dtype}, not floats")
