"""The bound of a packed data set is that of the same images as an array."""

import json

import numpy as np
import pytest
import torch

from data_pipeline.storage.shards import DamagedDataError, open_dataset
from eval.cli.commands import main as eval_main
from eval.runs import read_run
from eval.sampling.likelihood import dataset_bounds
from models.cli.commands import main
from models.config import DiffusionConfig, ModelConfig
from models.likelihood_report import summary
from models.networks.table import build_model
from models.snapshot import load_snapshot, write_snapshot
from tests.support.data import pack_arrays
from tests.support.evaluation import make_run


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    config = ModelConfig(image_size=8, base_channels=32, channel_multipliers=(1,), attention_resolutions=())
    torch.manual_seed(0)
    model = build_model(config)
    torch.nn.init.normal_(model.conv_out.weight, std=0.05)
    path = tmp_path_factory.mktemp("snapshot")
    write_snapshot(path, model.state_dict(), config, DiffusionConfig(num_timesteps=6), {})
    return path


def test_the_bound_is_that_of_the_same_images_as_an_array(snapshot, tmp_path, capsys):
    _, images = pack_arrays(tmp_path / "packed", 7, samples_per_shard=3)
    np.save(tmp_path / "images.npy", images)
    with open_dataset(tmp_path / "packed") as dataset:
        bounds, timesteps = dataset_bounds(load_snapshot(snapshot), dataset, batch_size=3, seed=5)
        few, short = dataset_bounds(load_snapshot(snapshot), dataset, num_images=2, num_steps=1)
    assert timesteps == list(range(6))
    assert [len(bound.prior) for bound in bounds] == [3, 3, 1]
    assert (len(few[0].prior), short, few[0].terms.shape) == (2, [5], (2, 1))
    arguments = ["likelihood", str(snapshot), str(tmp_path / "images.npy"), "--seed", "5", "--batch-size", "3"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == summary(bounds)


def test_a_grey_data_set_serves_a_colour_model(snapshot, tmp_path):
    pack_arrays(tmp_path, 2, channels=1)
    with open_dataset(tmp_path) as dataset:
        [bound], _ = dataset_bounds(load_snapshot(snapshot), dataset)
    assert torch.isfinite(bound.total).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_images": 0}, r"num_images is 0: it must be in \[1, 2\]; that is how many"),
        ({"num_images": 3}, r"num_images is 3: it must be in \[1, 2\]"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_steps": 7}, r"num_sampling_steps is 7: it must be in \[1, 6\]"),
    ],
)
def test_numbers_out_of_range_are_refused(snapshot, tmp_path, settings, message):
    pack_arrays(tmp_path, 2)
    with open_dataset(tmp_path) as dataset, pytest.raises(ValueError, match=message):
        dataset_bounds(load_snapshot(snapshot), dataset, **settings)


def test_images_of_another_size_are_refused_with_the_size_to_pack(snapshot, tmp_path):
    pack_arrays(tmp_path, 2, size=16)
    with open_dataset(tmp_path) as dataset, pytest.raises(ValueError, match=r"16 x 16 .* --image-size 8"):
        dataset_bounds(load_snapshot(snapshot), dataset)


def test_a_damaged_sample_is_named_instead_of_measured(snapshot, tmp_path):
    manifest, _ = pack_arrays(tmp_path, 2)
    shard = tmp_path / manifest.shards[0].name
    content = bytearray(shard.read_bytes())
    content[600] ^= 255
    shard.write_bytes(content)
    with open_dataset(tmp_path) as dataset, pytest.raises(DamagedDataError, match="is damaged"):
        dataset_bounds(load_snapshot(snapshot), dataset)


def test_the_command_measures_a_runs_newest_checkpoint_and_models_names_it(tmp_path, capsys):
    run = make_run(tmp_path, steps=(10, 20))
    data = read_run(run)["config"]["data"]["path"]
    arguments = ["--num-images", "2", "--num-sampling-steps", "2", "--device", "cpu"]
    assert eval_main(["likelihood", str(run), data, *arguments, "--output", str(tmp_path / "out")]) == 0
    newest = json.loads(capsys.readouterr().out)
    [checkpoint] = (run / "checkpoints").glob("step-00000020-*")
    assert eval_main(["likelihood", str(checkpoint), data, *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == newest
    assert json.loads((tmp_path / "out" / "likelihood.json").read_text())["num_images"] == 2
    assert eval_main(["likelihood", str(run), data, *arguments, "--step", "10"]) == 0
    assert json.loads(capsys.readouterr().out) != newest
    assert eval_main(["likelihood", str(run), data, "--step", "15"]) == 2
    assert "no complete checkpoint at step 15; there are: 10, 20" in capsys.readouterr().err
    assert main(["likelihood", str(checkpoint), data, "--device", "cpu"]) == 2
    assert "`python -m eval likelihood SNAPSHOT" in capsys.readouterr().err
