"""`import rayddpm`: what a user's three lines give for a run that was trained."""

from pathlib import Path

import numpy as np
import pytest

import rayddpm
from models.cli.commands import main
from tests.support.trainer import tiny_config, train_locally


@pytest.fixture(scope="module")
def run(data: Path, storage: Path) -> Path:
    return train_locally(tiny_config(data, storage, "run", train={"num_steps": 4})).directory


def test_three_lines_load_a_run_and_sample_as_the_command_does(run: Path, tmp_path: Path) -> None:
    model = rayddpm.load(run, device="cpu")
    images = model.sample(3, seed=5, sampler="ddim", num_sampling_steps=4)
    options = ["--seed", "5", "--sampler", "ddim", "--num-sampling-steps", "4", "--num-images", "3", "--device", "cpu"]
    assert main(["sample", str(run), *options, "--output", str(tmp_path)]) == 0
    np.testing.assert_array_equal(images, np.load(tmp_path / "samples.npz")["images"])
    assert images.shape == (3, 8, 8, 1)


def test_a_step_of_a_run_and_the_checkpoint_itself_are_the_same_model(run: Path) -> None:
    early, newest = rayddpm.load(run, step=2, device="cpu"), rayddpm.load(str(run), device="cpu")
    assert early.place.name.startswith("step-00000002-")
    assert newest.place.name.startswith("step-00000004-")
    again = rayddpm.load(early.place, device="cpu")
    np.testing.assert_array_equal(again.sample(2, seed=5), early.sample(2, seed=5))
    weights = [model.snapshot.model.state_dict() for model in (early, newest)]
    assert any(not tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no complete checkpoint of step 3; complete are: 2, 4"):
        rayddpm.load(run, step=3)
    with pytest.raises(FileNotFoundError, match="is not a snapshot"):
        rayddpm.load(tmp_path)


def test_every_public_name_is_documented() -> None:
    for name in rayddpm.__all__:
        thing = getattr(rayddpm, name)
        if name != "Images":  # an alias has none of its own
            assert not thing.__doc__.startswith(f"{name}(")  # which a dataclass gives itself
    public = [value for name, value in vars(rayddpm.TrainedModel).items() if not name.startswith("_")]
    assert len(public) >= 8
    assert all(value.__doc__ for value in public if callable(value) or isinstance(value, property))
