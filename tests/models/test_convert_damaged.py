"""Directories and files of other programs that are damaged, or not what they seem, are refused by name."""

import json
import shutil

import pytest
import torch

from models.config import DiffusionConfig, ModelConfig
from models.convert.tables import EXPORTS, IMPORTS
from models.networks.table import build_model
from models.snapshot import load_snapshot, write_snapshot

SMALL_LAYOUT = ModelConfig(base_channels=32, channel_multipliers=(1, 2), num_res_blocks=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A directory with one small network in every format: d/ of diffusers, p.pt of pesser."""
    folder = tmp_path_factory.mktemp("exported")
    write_snapshot(folder / "s", build_model(SMALL_LAYOUT).state_dict(), SMALL_LAYOUT, DiffusionConfig(), {})
    snapshot = load_snapshot(folder / "s")
    EXPORTS["diffusers"](snapshot, folder / "d")
    EXPORTS["pesser"](snapshot, folder / "p.pt")
    return folder


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        *[
            ("unet/config.json", {"block_out_channels": value}, "block_out_channels = ")
            for value in (5, None, ["a", "b"], [0, 0], [32.0, 64.0], {"0": 32})
        ],
        *[("unet/config.json", {"down_block_types": value}, "down_block_types = ") for value in (3, None, [["x"]])],
        ("unet/config.json", {"up_block_types": None}, "up_block_types = None"),
        *[("unet/config.json", {"sample_size": value}, "sample_size = ") for value in (True, "32", -32, [32, 32])],
        ("unet/config.json", {"attention_head_dim": [1]}, "attention_head_dim = "),
        ("scheduler/scheduler_config.json", {"beta_schedule": ["linear"]}, "beta_schedule = "),
        ("scheduler/scheduler_config.json", {"variance_type": [1]}, "variance_type = "),
    ],
)
def test_settings_of_a_wrong_type_are_named(exported, tmp_path, file, changes, message):
    shutil.copytree(exported / "d", tmp_path / "d")
    settings = json.loads((tmp_path / "d" / file).read_text())
    (tmp_path / "d" / file).write_text(json.dumps({**settings, **changes}))
    with pytest.raises(ValueError, match=message):
        IMPORTS["diffusers"](tmp_path / "d", None)


def test_settings_nested_without_end_are_damaged(exported, tmp_path):
    shutil.copytree(exported / "d", tmp_path / "d")
    (tmp_path / "d/unet/config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        IMPORTS["diffusers"](tmp_path / "d", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {1: torch.zeros(1)}, "is not a state dict"),
        (lambda state: {**state, "conv_in.weight": torch.zeros(0, 3, 3, 3)}, "no convolution conv_in.weight"),
        (lambda state: {**state, "down.0.block.0.conv1.weight": torch.tensor(1.0)}, "no convolution down.0"),
        (lambda state: {**state, "conv_in.bias": state["conv_in.bias"].to_sparse()}, "is not a plain tensor of floats"),
        (lambda state: {**state, "conv_in.bias": torch.zeros(32, device="meta")}, "is not a plain tensor of floats"),
        (lambda state: {name: tensor.to(torch.int8) for name, tensor in state.items()}, r"but torch.int8"),
        (
            lambda state: {**state, "conv_out.weight": state["conv_out.weight"].transpose(0, 1).contiguous()},
            r"conv_out.weight has shape \(32, 3, 3, 3\), which does not fit \(3, 32, 3, 3\)",
        ),
    ],
)
def test_tensors_that_would_be_read_wrongly_are_refused(exported, tmp_path, change, message):
    torch.save(change(torch.load(exported / "p.pt", weights_only=True)), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        IMPORTS["pesser"](tmp_path / "x.pt", None)
