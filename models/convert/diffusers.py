"""Directories of Hugging Face diffusers: DDPMPipeline with a UNet2DModel laid out as the paper's U-Net.

Written and read without the diffusers library, so that its versions do not matter here; tests hold both together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.files import read_json, write_json_atomic
from models.config import NUM_GROUPS, DiffusionConfig, ModelConfig
from models.convert.names import Imported, diffusers_name, read_tensors, to_ours, to_theirs
from models.networks.blocks import GROUP_NORM_EPSILON
from models.networks.unet import level_channels
from models.snapshot import Snapshot, save_tensors

LIBRARY_VERSION = "0.42.1"
WEIGHT_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
VARIANCES = {"fixedlarge": "fixed_large", "fixedsmall": "fixed_small"}
# What makes a UNet2DModel the paper's network. An absent key has the library's default.
FIXED_SETTINGS: dict[str, tuple[Any, Any]] = {
    "act_fn": ("silu", "silu"),
    "add_attention": (True, True),
    "attn_norm_num_groups": (None, None),
    "center_input_sample": (False, False),
    "class_embed_type": (None, None),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "flip_sin_to_cos": (False, True),
    "freq_shift": (1, 0),
    "mid_block_scale_factor": (1, 1),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "norm_eps": (GROUP_NORM_EPSILON, 1e-5),
    "norm_num_groups": (NUM_GROUPS, 32),
    "num_class_embeds": (None, None),
    "resnet_time_scale_shift": ("default", "default"),
    "time_embedding_type": ("positional", "positional"),
    "upsample_type": ("conv", "conv"),
}
"""Key: (the value that the paper's network needs, the library's default)."""
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention layers in directories written before 2023, such as google/ddpm-cifar10-32."""


def export_diffusers(snapshot: Snapshot, dest: Path) -> None:
    """Write a directory that DDPMPipeline.from_pretrained loads.

    Raises ValueError for a network that UNet2DModel cannot express.
    """
    config = snapshot.model_config
    settings = _unet_settings(config)
    tensors = to_theirs(snapshot.model.state_dict(), config, diffusers_name)
    for name, tensor in tensors.items():
        if ".attentions." in name and tensor.dim() == 4:
            tensors[name] = tensor.flatten(1)
    for folder in ("unet", "scheduler"):
        (dest / folder).mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, dest / "unet" / WEIGHT_NAMES[0])
    write_json_atomic(dest / "unet" / "config.json", settings)
    write_json_atomic(dest / "scheduler" / "scheduler_config.json", _scheduler_settings(snapshot.diffusion_config))
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": LIBRARY_VERSION,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    write_json_atomic(dest / "model_index.json", index)


def import_diffusers(source: Path, image_size: int | None = None) -> Imported:
    """Read a pipeline's directory, or one that holds the network itself, such as google/ddpm-cifar10-32.

    image_size: overrides the directory's. Without a scheduler beside it the network gets the paper's process.
    Raises FileNotFoundError if files are missing, ValueError naming a setting that is not the paper's.
    """
    folder = source / "unet" if (source / "unet" / "config.json").is_file() else source
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{source} has no config.json nor unet/config.json: give a diffusers model's directory")
    weights = next((folder / name for name in WEIGHT_NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has no {' nor '.join(WEIGHT_NAMES)}: the download is incomplete")
    config = _model_config(_read_json(folder / "config.json"), image_size, folder)
    tensors = {_new_name(name): tensor for name, tensor in read_tensors(weights).items()}
    schedulers = (source / "scheduler" / "scheduler_config.json", source / "scheduler_config.json")
    found = next((file for file in schedulers if file.is_file()), None)
    diffusion = DiffusionConfig() if found is None else _diffusion_config(_read_json(found), found)
    return Imported(to_ours(tensors, config, diffusers_name, str(weights)), config, diffusion)


def _unet_settings(config: ModelConfig) -> dict[str, Any]:
    if config.architecture != "ddpm" or config.channel_multipliers[0] != 1:
        raise ValueError(
            f"a {config.architecture} network with channel_multipliers {config.channel_multipliers} has no form in "
            "diffusers: its UNet2DModel is the ddpm architecture with 1 as the first multiplier"
        )
    attends = [size in config.attention_resolutions for size in config.level_resolutions]
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": LIBRARY_VERSION,
        **{name: needed for name, (needed, _) in FIXED_SETTINGS.items()},
        "attention_head_dim": None,
        "block_out_channels": list(level_channels(config)),
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "dropout": config.dropout,
        "in_channels": config.image_channels,
        "layers_per_block": config.num_res_blocks,
        "out_channels": config.image_channels,
        "sample_size": config.image_size,
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
    }


def _model_config(settings: dict[str, Any], image_size: int | None, folder: Path) -> ModelConfig:
    for name, (needed, default) in FIXED_SETTINGS.items():
        _require(settings.get(name, default) == needed, folder, name, settings.get(name, default), needed)
    size: Any = settings.get("sample_size") if image_size is None else image_size
    channels = settings.get("block_out_channels", [])
    down, up = settings.get("down_block_types", []), settings.get("up_block_types", [])
    _require(_is_list(channels, int) and min(channels, default=0) > 0, folder, "block_out_channels", channels, "widths")
    _require(_is_list(down, str), folder, "down_block_types", down, "a list of names")
    _require(_is_list(up, str), folder, "up_block_types", up, "a list of names")
    attends = [kind == "AttnDownBlock2D" for kind in down]
    expected_up = ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)]
    _require(_is_list([size], int) and size > 0, folder, "sample_size", size, "one number of pixels")
    _require(set(down) <= {"DownBlock2D", "AttnDownBlock2D"}, folder, "down_block_types", down, "(Attn)DownBlock2D")
    _require(list(up) == expected_up, folder, "up_block_types", up, expected_up)
    _require(len(down) == len(channels) > 0, folder, "block_out_channels", channels, f"{len(down)} widths")
    _require(all(width % channels[0] == 0 for width in channels), folder, "block_out_channels", channels, "multiples")
    outputs = settings.get("out_channels", 3)
    _require(settings.get("in_channels", 3) == outputs, folder, "out_channels", outputs, "as many as in_channels")
    # One head as wide as the block; the middle attends too.
    head = settings.get("attention_head_dim", 8)
    wide = {width for width, attend in zip(channels, attends, strict=True) if attend} | {channels[-1]}
    _require(
        head is None or (isinstance(head, int) and wide == {head}), folder, "attention_head_dim", head, "null, one head"
    )
    return ModelConfig(
        image_size=size,
        image_channels=outputs,
        base_channels=channels[0],
        channel_multipliers=tuple(width // channels[0] for width in channels),
        num_res_blocks=settings.get("layers_per_block", 2),
        attention_resolutions=tuple(size >> level for level, attend in enumerate(attends) if attend),
        dropout=settings.get("dropout", 0.0),
    )


def _scheduler_settings(diffusion: DiffusionConfig) -> dict[str, Any]:
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": LIBRARY_VERSION,
        "beta_end": diffusion.beta_end,
        "beta_schedule": SCHEDULES[diffusion.schedule],
        "beta_start": diffusion.beta_start,
        "clip_sample": True,
        "num_train_timesteps": diffusion.num_timesteps,
        "prediction_type": "epsilon",
        "trained_betas": None,
        "variance_type": VARIANCES[diffusion.variance],
    }


def _diffusion_config(settings: dict[str, Any], file: Path) -> DiffusionConfig:
    schedules = {theirs: ours for ours, theirs in SCHEDULES.items()}
    # The "_log" kinds are the same variances, computed by way of their logarithm.
    variances = {theirs + ending: ours for ours, theirs in VARIANCES.items() for ending in ("", "_log")}
    schedule = settings.get("beta_schedule", "linear")
    variance = settings.get("variance_type", "fixed_small")
    prediction = settings.get("prediction_type", "epsilon")
    _require(settings.get("trained_betas") is None, file, "trained_betas", settings.get("trained_betas"), "null")
    _require(
        isinstance(schedule, str) and schedule in schedules, file, "beta_schedule", schedule, " or ".join(schedules)
    )
    _require(isinstance(variance, str) and variance in variances, file, "variance_type", variance, ", ".join(variances))
    _require(prediction == "epsilon", file, "prediction_type", prediction, "epsilon")
    return DiffusionConfig(
        num_timesteps=settings.get("num_train_timesteps", 1000),
        schedule=schedules[schedule],  # type: ignore[arg-type]
        beta_start=settings.get("beta_start", 1e-4),
        beta_end=settings.get("beta_end", 0.02),
        variance=variances[variance],  # type: ignore[arg-type]
    )


def _new_name(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [OLD_NAMES.get(part, part) for part in parts]
    return ".".join(parts)


def _require(holds: bool, place: Path, name: str, found: object, needed: object) -> None:
    if not holds:
        raise ValueError(f"{place} has {name} = {found!r}: the paper's U-Net, which we can import, needs {needed}")


def _is_list(values: object, kind: type) -> bool:
    """Whether this is a list of such values; true and false do not count as numbers."""
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def _read_json(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it is not a JSON object")
    return content
