"""Snapshots: what is written comes back, and what is damaged is named."""

import hashlib
import json

import pytest
import safetensors.torch
import torch

from models.config import DiffusionConfig, ModelConfig
from models.networks.table import build_model
from models.samplers import sample
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


def _replace_bytes(content):
    def replace(path):
        (path / WEIGHTS_NAME).write_bytes(content)
        _edit(weights={"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})(path)

    return replace


def _replace(change):
    """Weights that were changed by somebody who wrote the right checksum beside them."""

    def replace(path):
        state = safetensors.torch.load_file(path / WEIGHTS_NAME)
        _replace_bytes(safetensors.torch.save(change(state)))(path)

    return replace


@pytest.mark.parametrize("dtypes", [[torch.float16], [torch.float64], [torch.bfloat16, torch.float32]])
def test_weights_of_any_float_dtype_load_as_float32(written, dtypes):
    path = written[0]
    _replace(lambda state: {name: t.to(dtypes[k % len(dtypes)]) for k, (name, t) in enumerate(state.items())})(path)
    snapshot = load_snapshot(path)
    assert {p.dtype for p in snapshot.model.parameters()} == {torch.float32}
    assert sample(snapshot.model, snapshot.diffusion, torch.arange(1), 0).dtype == torch.float32


def test_a_provenance_that_is_not_json_leaves_the_snapshot_before(written):
    path, model, diffusion = written
    changed = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_snapshot(path, changed, SMALL, diffusion, {"path": path})
    assert load_snapshot(path).provenance == {"step": 7}


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
        (_edit(model=[1]), ValueError, "lacks model, a JSON object"),
        (_edit(model={"architecture": "dit"}), ValueError, r"snapshot.json holds a network .* 'dit'"),
        (_edit(model={"base_channels": 65536, "channel_multipliers": [65536]}), ValueError, "cannot build"),
        (_edit(diffusion={"num_timesteps": 10**15}), ValueError, r"in \[2, 100000\]"),
        (_edit(provenance=[1]), ValueError, "lacks provenance, a JSON object"),
        (_edit(weights="sha256"), ValueError, "lacks weights, a JSON object"),
        (_edit(weights={"sha256": 3}), ValueError, "lacks the sha256 and bytes"),
        (lambda path: (path / RECORD_NAME).write_text("[" * 100_000), ValueError, "damaged"),
        (lambda path: (path / RECORD_NAME).write_bytes(b"\xff"), ValueError, "damaged"),
        (_replace(lambda state: {**state, "a\n\x1b[31m": torch.zeros(1)}), ValueError, r"first, 'a\\n\\x1b\[31m'"),
        (_replace(lambda state: {**state, "../x": torch.zeros(1)}), ValueError, r"'../x', does not belong"),
        (_replace(lambda state: {name: t.int() for name, t in state.items()}), ValueError, r"torch.int32, not floats"),
        (_replace_bytes((2**63).to_bytes(8, "little") + b"{}"), ValueError, "not a readable safetensors file"),
        (_replace_bytes((2).to_bytes(8, "little") + b"[]"), ValueError, "not a readable safetensors file"),
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
    with pytest.raises(ValueError, match=r"'conv_in.weight', is missing"):
        write_snapshot(tmp_path / "other", state, SMALL, diffusion, {})
    assert not (tmp_path / "other").exists()
