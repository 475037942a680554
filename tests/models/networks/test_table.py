"""The table of networks: what each entry must be, and what a wrong name gets."""

import pytest
import torch

from common.code import ROOT
from models.config import ModelConfig
from models.networks.table import NETWORKS, build_model, build_on_meta, image_shape, place

SMALL = {"image_size": 8, "base_channels": 32, "channel_multipliers": (1, 2), "attention_resolutions": (4,)}


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_network_predicts_noise_of_the_images_shape_and_dtype(architecture, channels):
    model = build_model(ModelConfig(architecture, image_channels=channels, **SMALL)).eval()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x_t = torch.zeros(2, channels, 8, 12, dtype=dtype)
        noise = model(x_t, torch.tensor([0, 999]))
        assert (noise.shape, noise.dtype) == (x_t.shape, dtype)
    assert image_shape(model) == (channels, 8, 8)
    assert place(model, torch.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize(
    ("x_t", "t", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), "x_t holds torch.uint8"),
        (torch.zeros(1, 3, 0, 8), torch.tensor([0]), r"x_t has shape \(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 7, 8), torch.tensor([0]), r"x_t has shape \(1, 3, 7, 8\)"),
        (torch.zeros(1, 1, 8, 8), torch.tensor([0]), r"x_t has shape \(1, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0]), r"t has shape \(1,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(architecture, x_t, t, message):
    with pytest.raises(ValueError, match=message):
        build_model(ModelConfig(architecture, **SMALL))(x_t, t)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_a_level_whose_norms_would_see_single_values_is_refused(architecture):
    sizes = {"base_channels": 32, "attention_resolutions": ()}
    with pytest.raises(ValueError, match="groups of one value each"):
        build_on_meta(ModelConfig(architecture, image_size=2, channel_multipliers=(1, 1), **sizes))
    with pytest.raises(ValueError, match="groups of one value each"):
        build_on_meta(ModelConfig(architecture, image_size=2, channel_multipliers=(1, 2), **sizes))
    sizes["base_channels"] = 64
    model = build_model(ModelConfig(architecture, image_size=2, channel_multipliers=(1, 1), **sizes))
    assert model(torch.zeros(1, 3, 2, 2), torch.tensor([0])).shape == (1, 3, 2, 2)


def test_an_unknown_network_is_refused_where_it_would_be_built():
    for build in (build_model, build_on_meta):
        with pytest.raises(ValueError, match=r"^architecture is 'dppm': it must be one of ddpm, .*; did you mean ddpm"):
            build(ModelConfig("dppm"))


def test_the_help_of_the_config_names_every_network():
    text = (ROOT / "models/config.py").read_text().partition("    architecture: str")[2].partition("image_size")[0]
    assert all(f"{name}: " in text for name in NETWORKS)
