"""Configurations: what is allowed, and the message for what is not."""

import dataclasses
import json
import subprocess
import sys

import pytest

from common.code import ROOT
from models.config import DiffusionConfig, ModelConfig
from models.networks.annotated_unet import cumulative_channels
from models.networks.unet import level_channels


def test_configs_survive_json():
    model = ModelConfig(
        image_size=64, attention_resolutions=(16, 8), architecture="annotated", channel_multipliers=(1, 2, 2, 2)
    )
    assert ModelConfig(**json.loads(json.dumps(dataclasses.asdict(model)))) == model
    diffusion = DiffusionConfig(schedule="cosine", variance="fixedsmall", num_timesteps=7)
    assert DiffusionConfig(**json.loads(json.dumps(dataclasses.asdict(diffusion)))) == diffusion


def test_widths_are_absolute_in_the_paper_and_cumulative_in_the_tutorial():
    assert level_channels(ModelConfig(channel_multipliers=(1, 2, 2, 4))) == (128, 256, 256, 512)
    tutorial = ModelConfig(architecture="annotated", base_channels=64, channel_multipliers=(1, 2, 2, 4))
    assert cumulative_channels(tutorial) == (64, 128, 256, 1024)
    assert tutorial.level_resolutions == (32, 16, 8, 4)


def test_the_config_needs_no_torch():
    code = "import sys, models.config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"architecture": None}, ["architecture is None", "a name"]),
        ({"base_channels": 48}, ["48", "multiple of 32"]),
        ({"base_channels": 0}, ["base_channels is 0", "in [1, 65536]"]),
        ({"base_channels": True}, ["base_channels is True"]),
        ({"image_size": 28}, ["28", "halved 3 times", "multiple of 8"]),
        ({"image_size": 8}, ["attention_resolutions has 16", "8, 4, 2, 1"]),
        ({"attention_resolutions": (16, 5)}, ["attention_resolutions has 5", "32, 16, 8, 4"]),
        ({"attention_resolutions": 16}, ["attention_resolutions is 16", "list"]),
        ({"channel_multipliers": ()}, ["channel_multipliers is ()", "one number for each level"]),
        ({"channel_multipliers": (1, 0)}, ["a value of channel_multipliers is 0"]),
        ({"channel_multipliers": (1, 1.5)}, ["1.5"]),
        ({"num_res_blocks": -1}, ["num_res_blocks is -1"]),
        ({"dropout": 1.0}, ["dropout is 1.0", "[0, 1)"]),
        ({"dropout": float("nan")}, ["dropout is nan"]),
        ({"dropout": "0.1"}, ["dropout is '0.1'"]),
        ({"gradient_checkpointing": "yes"}, ["gradient_checkpointing is 'yes'"]),
        ({"image_size": 10**12}, ["image_size is 1000000000000", "[1, 65536]"]),
        ({"num_res_blocks": 10**9}, ["num_res_blocks is 1000000000", "[1, 100]"]),
    ],
)
def test_networks_that_cannot_be_built_are_refused(changes, parts):
    with pytest.raises(ValueError, match=r".") as caught:
        ModelConfig(**changes)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_timesteps": 1}, r"in \[2, 100000\]; the paper uses 1000"),
        ({"num_timesteps": 10**12}, r"in \[2, 100000\]"),
        ({"num_timesteps": 10.0}, "whole number"),
        ({"schedule": "sigmoid"}, "linear, cosine"),
        ({"variance": "learned"}, "fixedlarge, fixedsmall"),
        ({"beta_start": 0.0}, r"in \[1e-08, 1\)"),
        ({"beta_start": 1e-17}, r"in \[1e-08, 1\)"),
        ({"beta_end": 1.0}, r"in \[1e-08, 1\)"),
        ({"beta_end": float("nan")}, r"in \[1e-08, 1\)"),
        ({"num_timesteps": 50_000}, r"leaves exp\(-506\)"),
        ({"beta_end": 0.999}, r"leaves exp\(-996\)"),
        ({"beta_start": 0.5}, "must not fall"),
    ],
)
def test_processes_that_make_no_sense_are_refused(changes, part):
    with pytest.raises(ValueError, match=part):
        DiffusionConfig(**changes)
