"""What follows from the data set, and which runs a CPU is kept from."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.trainer import digits
from trainer.command import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits(tmp_path_factory.mktemp("digits"))


def tall(data: Path, storage: Path) -> list[str]:
    """A run of the small preset on images of 8 px."""
    model = ["--model.attention-resolutions", "4"]
    return ["--preset", "small32", "--data.path", str(data), "--run.storage", str(storage), *model]


def test_size_and_channels_follow_from_the_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tall(data, tmp_path), "--dry-run"]) == 0
    model = json.loads(capsys.readouterr().out)["config"]["model"]
    assert (model["image_size"], model["image_channels"]) == (8, 1)


def test_what_the_user_has_set_must_be_what_the_data_have(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tall(data, tmp_path), "--model.image-channels", "3", "--dry-run"]) == 2
    assert "model.image_channels 3 does not match the shards" in capsys.readouterr().err


def test_a_network_that_cannot_have_the_datas_size_is_refused_with_both(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--preset", "small32", "--data.path", str(data), "--run.storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "(8 px, 1 channels): attention_resolutions has 16" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about machines without a GPU")
def test_weeks_on_a_cpu_are_refused_with_an_estimate_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    assert main([*tall(data, storage), "--train.num-steps", "1000000000", "--launcher", "local"]) == 2
    said = capsys.readouterr().err
    assert "training would take at least" in said
    assert "--allow-long-cpu-run" in said
    assert not storage.exists()
