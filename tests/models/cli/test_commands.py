"""The command line of models/: what a user types and gets, and what is said when it is wrong."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from models.cli.commands import main
from models.config import DiffusionConfig, ModelConfig
from models.networks.table import build_model
from models.pixels import to_uint8
from models.samplers import sample
from models.snapshot import load_snapshot, write_snapshot

TINY = ModelConfig(
    image_size=8, base_channels=32, channel_multipliers=(1, 1), num_res_blocks=1, attention_resolutions=()
)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "snapshot"
    model = build_model(TINY)
    torch.nn.init.normal_(model.conv_out.weight, std=0.05)
    write_snapshot(path, model.state_dict(), TINY, DiffusionConfig(num_timesteps=20), {"step": 3})
    return path


def test_sample_writes_images_that_batches_do_not_change(snapshot, tmp_path):
    command = ["sample", str(snapshot), "--num-images", "5", "--seed", "4", "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "a")]) == 0
    assert main([*command, "--output", str(tmp_path / "b"), "--batch-size", "2"]) == 0
    images = np.load(tmp_path / "a" / "samples.npz")["images"]
    assert (images.shape, images.dtype) == ((5, 8, 8, 3), np.uint8)
    other = np.load(tmp_path / "b" / "samples.npz")["images"].astype(int)
    # Convolutions of another batch size may round differently: a level here and there, never more.
    assert np.abs(images - other).max() <= 1
    loaded = load_snapshot(snapshot)
    expected = to_uint8(sample(loaded.model, loaded.diffusion, torch.arange(5), 4)).permute(0, 2, 3, 1).numpy()
    assert np.abs(images - expected.astype(int)).max() <= 1
    grid = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    assert grid.shape == (2 * 66 + 2, 3 * 66 + 2, 3)
    np.testing.assert_array_equal(grid[2:66:8, 68:132:8], images[1])


def test_a_run_is_sampled_from_its_newest_complete_checkpoint_or_that_of_a_step(snapshot, tmp_path, capsys):
    for name, committed in (
        ("step-00000003-a", True),
        ("step-00000020-b", True),
        ("step-00000100-c", False),
        ("step-00000020-kept.by-me", True),
    ):
        shutil.copytree(snapshot, tmp_path / "run" / "checkpoints" / name)
        if committed:
            (tmp_path / "run" / "checkpoints" / name / "COMPLETE.json").write_text("{}")
    few = ["sample", str(tmp_path / "run"), "--num-images", "1", "--sampler", "ddim", "--num-sampling-steps", "2"]
    for name, chosen in ((), "step-00000020-b"), (("--step", "3"), "step-00000003-a"):
        assert main([*few, *name, "--device", "cpu", "--output", str(tmp_path / "out")]) == 0
        record = json.loads((tmp_path / "out" / "sampling.json").read_text())
        assert record["snapshot"] == str(tmp_path / "run" / "checkpoints" / chosen)
    assert main([*few, "--step", "100"]) == 2
    assert "no complete checkpoint of step 100; complete are: 3, 20" in capsys.readouterr().err


def test_first_index_continues_a_set(snapshot, tmp_path):
    common = ["--sampler", "ddim", "--num-sampling-steps", "4", "--device", "cpu", "--output"]
    assert main(["sample", str(snapshot), "--num-images", "4", *common, str(tmp_path / "all")]) == 0
    assert main(["sample", str(snapshot), "--num-images", "2", "--first-index", "2", *common, str(tmp_path / "b")]) == 0
    whole, rest = (np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in ("all", "b"))
    assert np.abs(whole[2:] - rest).max() <= 1
    assert np.abs(whole[0] - whole[1]).max() > 1
    record = json.loads((tmp_path / "b" / "sampling.json").read_text())
    assert (record["first_index"], record["timesteps"]) == (2, [0, 6, 13, 19])


def test_inspect_reports_the_model_as_json(snapshot, capsys):
    assert main(["inspect", str(snapshot)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_parameters"] == sum(p.numel() for p in build_model(TINY).parameters())
    assert report["provenance"] == {"step": 3}
    assert report["diffusion"]["num_timesteps"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "command"),
        (["sample"], "SNAPSHOT is missing"),
        (["paint"], "no command paint"),
        (["sample", "/nowhere"], "/nowhere is not a snapshot"),
        (["sample", "SNAPSHOT", "--num-images", "0"], "num_images is 0"),
        (["sample", "SNAPSHOT", "--num-images", "few"], "few"),
        (["sample", "SNAPSHOT", "--sampler", "magic"], "magic"),
        (["sample", "SNAPSHOT", "--eta", "2", "--sampler", "ddim"], "eta is 2.0"),
        (["sample", "SNAPSHOT", "--eta", "0.5"], "only the sampler ddim has it"),
        (["sample", "SNAPSHOT", "--batch-size", "0"], "batch_size is 0"),
        (["sample", "SNAPSHOT", "--num-sampling-steps", "21"], "must be in [1, 20]"),
        (["sample", "SNAPSHOT", "--device", "abacus"], "device is 'abacus'"),
        (["sample", "SNAPSHOT", "--device", "cuda:99"], "device is 'cuda:99'"),
        (["sample", "SNAPSHOT", "--colour", "red"], "--colour"),
        (["inspect", "/nowhere"], "/nowhere is not a snapshot"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(snapshot, capsys, arguments, message):
    assert main([str(snapshot) if part == "SNAPSHOT" else part for part in arguments]) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert captured.err.splitlines()[-1] == errors[0]
    assert "Traceback" not in captured.err
