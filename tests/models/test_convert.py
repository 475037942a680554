"""Conversions both ways, on random weights, against the programs they are for."""

import importlib
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from models.cli.commands import main
from models.config import DiffusionConfig, ModelConfig
from models.convert.tables import EXPORTS, IMPORTS
from models.networks.table import build_model
from models.networks.unet import level_channels
from models.snapshot import load_snapshot, write_snapshot
from tests.support.reference import models_reference as reference

CIFAR_LAYOUT = ModelConfig(base_channels=32)
CELEBAHQ_LAYOUT = ModelConfig(image_size=256, base_channels=32, channel_multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0)
TUTORIAL_LAYOUT = ModelConfig(
    architecture="annotated", base_channels=32, channel_multipliers=(1, 2, 1, 2), attention_resolutions=(8, 4)
)
PROCESS = DiffusionConfig(variance="fixedsmall")


def _snapshot(path, config, diffusion=PROCESS):
    model = reference.randomise(build_model(config)).eval()
    write_snapshot(path, model.state_dict(), config, diffusion, {})
    return model


def _same_weights(a, b):
    assert set(a) == set(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("config", [CIFAR_LAYOUT, CELEBAHQ_LAYOUT], ids=["cifar", "256"])
def test_diffusers_loads_our_export_and_we_load_it_back(tmp_path, config):
    model = _snapshot(tmp_path / "ours", config)
    assert main(["export", str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "theirs")
    assert pipeline.scheduler.config.variance_type == "fixed_small"
    assert pipeline.unet.config.sample_size == config.image_size
    assert sum(p.numel() for p in pipeline.unet.parameters()) == sum(p.numel() for p in model.parameters())
    x, t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 999])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet.eval()(x, t).sample, model(x, t), rtol=0, atol=1e-4)
    pipeline.save_pretrained(tmp_path / "saved")
    assert main(["import", str(tmp_path / "saved"), str(tmp_path / "back")]) == 0
    back = load_snapshot(tmp_path / "back")
    assert (back.model_config, back.diffusion_config) == (config, PROCESS)
    _same_weights(back.model.state_dict(), model.state_dict())
    assert back.provenance["format"] == "diffusers"


def test_the_exported_pipeline_generates_what_we_do(tmp_path):
    config = ModelConfig(image_size=8, base_channels=32, channel_multipliers=(1, 2), attention_resolutions=(4,))
    diffusion = DiffusionConfig(num_timesteps=30, beta_start=0.001, beta_end=0.3)
    _snapshot(tmp_path / "ours", config, diffusion)
    loaded = load_snapshot(tmp_path / "ours")
    EXPORTS["diffusers"](loaded, tmp_path / "theirs")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "theirs")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        batch_size=2, generator=torch.Generator().manual_seed(3), num_inference_steps=30, output_type="np"
    )
    # The same algorithm with the library's own generator in place of our streams.
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        for t in range(29, -1, -1):
            noise = torch.randn(x.shape, generator=generator) if t else torch.zeros(x.shape)
            x = loaded.diffusion.p_sample(loaded.model, x, torch.full((2,), t), noise)
    np.testing.assert_allclose(theirs.images, ((x + 1) / 2).permute(0, 2, 3, 1), atol=2e-4)


def _google_directory(path, config, variance="fixed_large"):
    """A directory as google/ddpm-cifar10-32 has it: flat, old attention names, settings of version 0.0.4."""
    levels = level_channels(config)
    attends = [size in config.attention_resolutions for size in config.level_resolutions]
    settings = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": list(levels),
        "center_input_sample": False,
        "down_block_types": ["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": config.image_size,
        "time_embedding_type": "positional",
        "up_block_types": ["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(settings))
    model = reference.randomise(
        UNet2DModel(**{name: value for name, value in settings.items() if not name.startswith("_")})
    ).eval()
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = {}
    for name, tensor in model.state_dict().items():
        for new_part, old_part in old.items():
            name = name.replace(new_part, old_part) if "attentions" in name else name
        weights[name] = tensor
    torch.save(weights, path / "diffusion_pytorch_model.bin")
    scheduler = {"_class_name": "DDPMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
    scheduler |= {"num_train_timesteps": 1000, "trained_betas": None, "variance_type": variance, "clip_sample": True}
    (path / "scheduler_config.json").write_text(json.dumps(scheduler))
    return model


@pytest.mark.parametrize(
    ("config", "variance"), [(CIFAR_LAYOUT, "fixed_large"), (CELEBAHQ_LAYOUT, "fixed_small")], ids=["cifar", "256"]
)
def test_directories_in_the_style_of_google_ddpm_are_read(tmp_path, config, variance):
    theirs = _google_directory(tmp_path / "google", config, variance)
    assert main(["import", str(tmp_path / "google"), str(tmp_path / "ours"), "--format", "diffusers"]) == 0
    loaded = load_snapshot(tmp_path / "ours")
    assert loaded.model_config == ModelConfig(**{**vars(config), "dropout": 0.0})
    assert loaded.diffusion_config.variance == variance.replace("_", "")
    x, t = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x, t), theirs(x, t).sample, rtol=0, atol=1e-4)


def test_a_network_saved_alone_gets_the_papers_process(tmp_path):
    _google_directory(tmp_path / "google", CIFAR_LAYOUT)
    (tmp_path / "google" / "scheduler_config.json").unlink()
    assert IMPORTS["diffusers"](tmp_path / "google", None).diffusion == DiffusionConfig()


def test_the_cosine_schedule_is_that_of_diffusers(tmp_path):
    config = ModelConfig(image_size=8, base_channels=32, channel_multipliers=(1,), attention_resolutions=())
    diffusion = DiffusionConfig(schedule="cosine", num_timesteps=100)
    _snapshot(tmp_path / "ours", config, diffusion)
    loaded = load_snapshot(tmp_path / "ours")
    EXPORTS["diffusers"](loaded, tmp_path / "theirs")
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "theirs" / "scheduler")
    torch.testing.assert_close(scheduler.betas, loaded.diffusion.tables.betas.float())
    assert IMPORTS["diffusers"](tmp_path / "theirs", None).diffusion == diffusion


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flip_sin_to_cos", True),
        ("freq_shift", 0),
        ("downsample_padding", 1),
        ("norm_eps", 1e-5),
        ("attention_head_dim", 8),
        ("act_fn", "gelu"),
        ("up_block_types", ["UpBlock2D"] * 4),
        ("down_block_types", ["ResnetDownsampleBlock2D"] * 4),
        ("block_out_channels", [32, 48, 64, 64]),
        ("sample_size", None),
        ("out_channels", 6),
        ("resnet_time_scale_shift", "scale_shift"),
        ("add_attention", False),
    ],
)
def test_networks_that_are_not_the_papers_are_refused_by_their_setting(tmp_path, key, value):
    _google_directory(tmp_path / "google", CIFAR_LAYOUT)
    file = tmp_path / "google" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ValueError, match=key):
        IMPORTS["diffusers"](tmp_path / "google", None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_schedule", "scaled_linear"),
        ("variance_type", "learned"),
        ("prediction_type", "v_prediction"),
        ("trained_betas", [0.1]),
    ],
)
def test_processes_that_are_not_the_papers_are_refused_by_their_setting(tmp_path, key, value):
    _google_directory(tmp_path / "google", CIFAR_LAYOUT)
    file = tmp_path / "google" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(ValueError, match=key):
        IMPORTS["diffusers"](tmp_path / "google", None)


PESSER_NAMES = {
    "time_embedding.dense2.bias": "temb.dense.1.bias",
    "conv_in.weight": "conv_in.weight",
    "down.0.blocks.1.time_projection.weight": "down.0.block.1.temb_proj.weight",
    "down.1.blocks.0.shortcut.weight": "down.1.block.0.nin_shortcut.weight",
    "down.1.attentions.1.norm.weight": "down.1.attn.1.norm.weight",
    "down.1.attentions.1.query.weight": "down.1.attn.1.q.weight",
    "down.2.resample.conv.weight": "down.2.downsample.conv.weight",
    "middle_block1.norm1.bias": "mid.block_1.norm1.bias",
    "middle_attention.projection.weight": "mid.attn_1.proj_out.weight",
    "middle_block2.conv2.weight": "mid.block_2.conv2.weight",
    "up.3.blocks.2.conv1.weight": "up.3.block.2.conv1.weight",
    "up.1.attentions.2.key.bias": "up.1.attn.2.k.bias",
    "up.1.attentions.2.value.bias": "up.1.attn.2.v.bias",
    "up.3.resample.conv.bias": "up.3.upsample.conv.bias",
    "norm_out.weight": "norm_out.weight",
    "conv_out.bias": "conv_out.bias",
}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_pesser_checkpoints_have_the_authors_names_and_come_back(tmp_path, suffix):
    model = _snapshot(tmp_path / "ours", CIFAR_LAYOUT)
    file = tmp_path / f"model-790000{suffix}"
    assert main(["export", str(tmp_path / "ours"), str(file), "--format", "pesser"]) == 0
    weights = torch.load(file, weights_only=True) if suffix == ".ckpt" else safetensors.torch.load_file(file)
    assert len(weights) == len(model.state_dict())
    for ours, theirs in PESSER_NAMES.items():
        assert torch.equal(weights[theirs], model.state_dict()[ours])
    assert not [name for name in weights if "resample" in name or "projection" in name or "blocks" in name]
    assert main(["import", str(file), str(tmp_path / "back"), "--format", "pesser"]) == 0
    back = load_snapshot(tmp_path / "back")
    assert (back.model_config, back.diffusion_config) == (CIFAR_LAYOUT, DiffusionConfig(variance="fixedlarge"))
    _same_weights(back.model.state_dict(), model.state_dict())


def test_pesser_checkpoints_tell_256_pixels_by_the_level_of_attention(tmp_path):
    model = _snapshot(tmp_path / "ours", CELEBAHQ_LAYOUT)
    EXPORTS["pesser"](load_snapshot(tmp_path / "ours"), tmp_path / "church.ckpt")
    imported = IMPORTS["pesser"](tmp_path / "church.ckpt", None)
    assert (imported.model, imported.diffusion) == (CELEBAHQ_LAYOUT, DiffusionConfig(variance="fixedsmall"))
    _same_weights(imported.tensors, model.state_dict())
    assert IMPORTS["pesser"](tmp_path / "church.ckpt", 128).model.attention_resolutions == (8,)


def test_the_tutorials_state_dict_is_read_and_written(tmp_path):
    labml = importlib.import_module("labml_nn.diffusion.ddpm.unet")
    theirs = reference.perturb(labml.UNet(3, 32, (1, 2, 1, 2), (False, False, True, True))).eval()
    torch.save(theirs.state_dict(), tmp_path / "eps_model.pth")
    assert main(["import", str(tmp_path), str(tmp_path / "ours"), "--format", "annotated"]) == 0
    loaded = load_snapshot(tmp_path / "ours")
    assert loaded.model_config == TUTORIAL_LAYOUT
    x, t = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 600])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x, t), theirs(x, t), rtol=0, atol=1e-5)
    EXPORTS["annotated"](loaded, tmp_path / "again.pth")
    _same_weights(torch.load(tmp_path / "again.pth", weights_only=True), theirs.state_dict())


def test_wrapped_and_prefixed_state_dicts_are_unpacked(tmp_path):
    model = build_model(TUTORIAL_LAYOUT)
    wrapped = {"eps_model": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}, "step": 5}
    torch.save(wrapped, tmp_path / "a.pt")
    _same_weights(IMPORTS["annotated"](tmp_path / "a.pt", None).tensors, model.state_dict())
    assert IMPORTS["annotated"](tmp_path / "a.pt", 64).model.attention_resolutions == (16, 8)


class _Trap:
    def __reduce__(self):
        return (open, ("/tmp/models-convert-trap", "w"))


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"nonsense", "pesser", "not a torch file"),
        ({"a": 1}, "pesser", "not a state dict"),
        ({"a": torch.zeros(1)}, "pesser", "has no convolution conv_in.weight but 'a'"),
        ({"a": torch.zeros(1)}, "annotated", "has no convolution image_proj.weight but 'a'"),
        ({"conv_in.weight": torch.zeros(32, 3, 3, 3)}, "pesser", "give image_size"),
        ({"image_proj.weight": torch.zeros(32, 3, 3, 3)}, "annotated", "no residual blocks"),
        ({"a": _Trap()}, "pesser", "not a torch file of plain tensors"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, capsys, content, kind, message):
    file = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    assert main(["import", str(file), str(tmp_path / "ours"), "--format", kind]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ours").exists()


def test_incomplete_sources_and_wrong_targets_are_named(tmp_path, capsys):
    _snapshot(tmp_path / "tutorial", TUTORIAL_LAYOUT)
    _google_directory(tmp_path / "google", CIFAR_LAYOUT)
    weights = torch.load(tmp_path / "google" / "diffusion_pytorch_model.bin", weights_only=True)
    shutil.copytree(tmp_path / "google", tmp_path / "lacking")
    torch.save(
        {n: w for n, w in weights.items() if n != "conv_in.bias"}, tmp_path / "lacking" / "diffusion_pytorch_model.bin"
    )
    (tmp_path / "google" / "diffusion_pytorch_model.bin").unlink()
    for arguments, message in [
        (["import", str(tmp_path / "google"), str(tmp_path / "x")], "has no diffusion_pytorch_model.safetensors nor"),
        (["import", str(tmp_path / "lacking"), str(tmp_path / "x")], "'conv_in.bias', is missing"),
        (["import", str(tmp_path / "nowhere"), str(tmp_path / "x")], "no config.json"),
        (["import", str(tmp_path / "nowhere"), str(tmp_path / "x"), "--format", "pesser"], "does not exist"),
        (["export", str(tmp_path / "tutorial"), str(tmp_path / "x")], "has no form in diffusers"),
        (["export", str(tmp_path / "tutorial"), str(tmp_path / "x.pt"), "--format", "pesser"], "holds ddpm networks"),
        (["export", str(tmp_path / "tutorial"), str(tmp_path / "x"), "--format", "annotated"], "must end in"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
