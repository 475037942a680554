"""Snapshots: what is written comes back, and what is damaged is named."""

import json

import pytest
import torch

from models.config import DiffusionConfig, ModelConfig
from models.networks import build_model
from models.snapshot import RECORD_NAME, WEIGHTS_NAME, load_snapshot, write_snapshot

SMALL = ModelConfig(
    image_size=8,
    image_channels=1,
    base_channels=32,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
)


@pytest.fixture
def written(tmp_path):
    torch.manual_seed(0)
    model = build_model(SMALL)
    diffusion = DiffusionConfig(num_timesteps=10, schedule="cosine", variance="fixedsmall")
    write_snapshot(tmp_path / "snap", model.state_dict(), SMALL, diffusion, {"step": 7})
    return tmp_path / "snap", model, diffusion


def test_a_snapshot_comes_back_whole(written):
    path, model, diffusion = written
    snapshot = load_snapshot(path)
    assert (snapshot.model_config, snapshot.diffusion_config, snapshot.provenance) == (SMALL, diffusion, {"step": 7})
    assert not snapshot.model.training
    assert snapshot.diffusion.num_steps == 10
    for name, tensor in model.state_dict().items():
        assert torch.equal(snapshot.model.state_dict()[name], tensor)
        assert snapshot.model.get_parameter(name).requires_grad
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 9])
    torch.testing.assert_close(snapshot.model(x, t), model.eval()(x, t), rtol=1e-5, atol=1e-6)


def test_weights_of_any_dtype_and_layout_are_stored_as_float32(tmp_path):
    model = build_model(SMALL).double().to(memory_format=torch.channels_last)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    views, offset = {}, 0
    for name, p in model.named_parameters():
        views[name] = flat[offset : offset + p.numel()].view(p.shape)
        offset += p.numel()
    write_snapshot(tmp_path, views, SMALL, DiffusionConfig(), {})
    loaded = load_snapshot(tmp_path).model
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    torch.testing.assert_close(loaded.conv_in.weight, model.conv_in.weight.float(), rtol=0, atol=0)


def test_a_second_write_replaces_the_first_and_leaves_nothing_temporary(written):
    path, model, diffusion = written
    write_snapshot(path, model.state_dict(), SMALL, diffusion, {"step": 8})
    assert load_snapshot(path).provenance == {"step": 8}
    assert sorted(file.name for file in path.iterdir()) == [WEIGHTS_NAME, RECORD_NAME]
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in path.iterdir())


def _flip_a_byte(path):
    content = bytearray((path / WEIGHTS_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (path / WEIGHTS_NAME).write_bytes(content)


def _edit(**changes):
    def edit(path):
        record = json.loads((path / RECORD_NAME).read_text())
        for key, value in changes.items():
            if value is None:
                del record[key]
            else:
                record[key] = value
        (path / RECORD_NAME).write_text(json.dumps(record))

    return edit


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: (path / RECORD_NAME).unlink(), FileNotFoundError, "not a snapshot"),
        (lambda path: (path / WEIGHTS_NAME).unlink(), FileNotFoundError, "has no ema.safetensors"),
        (lambda path: (path / RECORD_NAME).write_text("{"), ValueError, "damaged"),
        (lambda path: (path / RECORD_NAME).write_text("[]"), ValueError, "damaged"),
        (lambda path: (path / WEIGHTS_NAME).write_bytes(b"abc"), ValueError, "3 bytes whose sha256"),
        (_flip_a_byte, ValueError, "damaged"),
        (_edit(format_version=99), ValueError, "format version 99"),
        (_edit(weights=None), ValueError, "lacks weights"),
        (_edit(model={"image_size": 7}), ValueError, "cannot build"),
        (_edit(model={"colour": 7}), ValueError, "cannot build"),
        (_edit(model={}), ValueError, "do not fit the model"),
    ],
)
def test_damage_is_refused_in_one_line_that_names_it(written, damage, error, message):
    path = written[0]
    damage(path)
    with pytest.raises(error, match=message) as caught:
        load_snapshot(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_not_written(tmp_path, written):
    _, model, diffusion = written
    state = dict(model.state_dict())
    state["conv_in.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"conv_in.weight is \(1,\)"):
        write_snapshot(tmp_path / "other", state, SMALL, diffusion, {})
    del state["conv_in.weight"]
    with pytest.raises(ValueError, match=r"conv_in.weight, is missing"):
        write_snapshot(tmp_path / "other", state, SMALL, diffusion, {})
    assert not (tmp_path / "other").exists()
