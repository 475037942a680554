"""A run whose config or data have changed: refused with a diff, or forced and recorded, with metrics that are true."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cluster.run_directory import complete_checkpoints, step_of
from cluster.storage import complete_directories, remove_directory
from cluster.tracking.spool import read_metrics
from common.files import read_json, write_json_atomic
from data_pipeline.demo.sets import DemoOptions, pack_demo
from tests.support.trainer import digits, losses, tiny_config, train_locally
from trainer.config.config import Config, digest, name_digest, semantics
from trainer.config.plan import plan
from trainer.run import open_run, run_lease

pytestmark = pytest.mark.heavy


def test_other_semantics_are_refused_with_a_diff(data: Path, tmp_path: Path) -> None:
    train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 2}))
    changed = plan(tiny_config(data, tmp_path, "run", train={"seed": 1}, optim={"learning_rate": 1e-5}), "tiny")
    expected = r"optim.learning_rate was 0.002, is 1e-05; train.seed was 0, is 1"
    with run_lease(changed.directory) as lease, pytest.raises(ValueError, match=expected):
        open_run(changed, lease)


def test_a_forced_change_trains_on_and_is_recorded(data: Path, tmp_path: Path) -> None:
    train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 2}))
    changed = tiny_config(data, tmp_path, "run", optim={"learning_rate": 1e-5})
    planned = train_locally(changed, force_changes=True)
    recorded = [{"after_step": 2, "changes": ["optim.learning_rate was 0.002, is 1e-05"]}]
    assert read_json(planned.directory / "run.json")["forced_changes"] == recorded
    newest = complete_directories(planned.directory / "checkpoints")[-1]
    assert step_of(newest) == 6
    assert read_json(newest / "state.json")["forced_changes"] == recorded
    rates = [value for _, value, _ in read_metrics(planned.directory)["train/learning_rate"]]
    assert rates == [0.0, 0.001, *[1e-5] * 4]
    longer = train_locally(dataclasses.replace(changed, train=dataclasses.replace(changed.train, num_steps=7)))
    assert read_json(longer.directory / "run.json")["forced_changes"] == recorded


def test_metrics_beyond_the_checkpoint_are_those_of_what_is_trained_now(data: Path, tmp_path: Path) -> None:
    """The first attempt has logged five steps when it is killed; only the checkpoint of step 2 is left of it."""
    planned = train_locally(configured(data, tmp_path, {"train": {"num_steps": 5}}))
    first = losses(planned.directory)
    assert len(first) == 5
    for checkpoint in complete_checkpoints(planned.directory)[1:]:
        remove_directory(checkpoint)
    train_locally(configured(data, tmp_path, {"optim": {"learning_rate": 1e-5}}), force_changes=True)
    second = losses(planned.directory)
    assert len(second) == 6
    assert second[:2] == first[:2]
    assert all(new != old for new, old in zip(second[3:5], first[3:5], strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_of_before_masks_followed_the_sample_goes_on_if_it_has_none_or_is_forced(
    data: Path, tmp_path: Path, dropout: float
) -> None:
    model = {"model": {"dropout": dropout}}
    planned = train_locally(configured(data, tmp_path, model | {"train": {"num_steps": 2}}))
    run = read_json(planned.directory / "run.json")
    run["semantics"].pop("train.dropout_masks", None)
    write_json_atomic(planned.directory / "run.json", run)
    longer = configured(data, tmp_path, model | {"train": {"num_steps": 3}})
    if dropout:
        expected = "train.dropout_masks was 'by step and worker', is 'by sample counter'"
        with pytest.raises(ValueError, match=expected):
            train_locally(longer)
        forced = train_locally(longer, force_changes=True)
        recorded = [{"after_step": 2, "changes": [expected]}]
        assert read_json(forced.directory / "run.json")["forced_changes"] == recorded
    else:
        assert read_json(train_locally(longer).directory / "run.json")["forced_changes"] == []


def test_a_run_is_named_by_what_the_user_sets(data: Path, tmp_path: Path) -> None:
    """So that the same command finds the run of an earlier version, and is refused there, not begun anew."""
    config = configured(data, tmp_path, {"model": {"dropout": 0.2}})
    values = semantics(config, "digest")
    assert values.pop("train.dropout_masks") == "by sample counter"
    assert name_digest(semantics(config, "digest")) == digest(values)


def configured(data: Path, storage: Path, sections: dict[str, dict[str, Any]]) -> Config:
    """As `tiny_config`, and with values of the network's."""
    config = tiny_config(data, storage, "run", **{name: v for name, v in sections.items() if name != "model"})
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **sections.get("model", {})))


@pytest.mark.parametrize(
    ("sections", "problem"),
    [({"model": {"num_res_blocks": 2}}, "other names or shapes"), ({"ema": {"decay": 0.5}}, "were made with 0.999")],
)
def test_a_change_that_no_checkpoint_fits_cannot_be_forced(
    data: Path, tmp_path: Path, sections: dict[str, dict[str, Any]], problem: str
) -> None:
    planned = train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 2}))
    before = (planned.directory / "run.json").read_text()
    config = planned.config
    for name, values in sections.items():
        config = dataclasses.replace(config, **{name: dataclasses.replace(getattr(config, name), **values)})
    with pytest.raises(ValueError, match=problem):
        train_locally(config, force_changes=True)
    assert (planned.directory / "run.json").read_text() == before


def test_changed_data_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    digits(data)
    train_locally(tiny_config(data, tmp_path, "run", train={"num_steps": 2}))
    pack_demo(DemoOptions("digits", num_images=39), tmp_path / "other")
    changed = plan(tiny_config(tmp_path / "other", tmp_path, "run"), "tiny")
    with run_lease(changed.directory) as lease, pytest.raises(ValueError, match=r"data.digest was '\w+', is '\w+'"):
        open_run(changed, lease)
