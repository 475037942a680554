from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from cluster.tracking.spool import Spool, read_events, read_metrics
from cluster.tracking.uploader import Uploader, default_tracking_uri
from common.files import read_json, write_json_atomic

UNREADABLE = [
    b'{"type": "metrics", "step": 15, "val\xff\xfe\n',
    b"\0\0\0\0\n",
    b"\n",
    b"3\n",
    b"[1, 2]\n",
    b'{"typo": "metrics", "step": 15, "values": {}, "time": 1.0}\n',
    b'{"type": ["metrics"], "time": 1.0}\n',
    b'{"type": "metrics", "values": {"train/loss": 0.5}, "time": 1.0}\n',
    b'{"type": "metrics", "step": 15, "values": {"train/loss": "0x5"}, "time": 1.0}\n',
    b'{"type": "metrics", "step": 15, "values": {"train/loss": 0.5}}\n',
    b'{"type": "status", "time": 1.0}\n',
    b"[" * 200_000 + b"\n",
    b'{"type": "metrics", "step": 15, "values": {"train/loss": 0.5}, "time": Infinity}\n',
    b'{"type": "metrics", "step": 15, "values": {"train/loss": 1' + b"0" * 400 + b'}, "time": 1.0}\n',
    b'{"type": "metrics", "step": 1' + b"0" * 30 + b', "values": {"train/loss": 0.5}, "time": 1.0}\n',
    b'{"type": "metrics", "step": true, "values": {"train/loss": 0.5}, "time": 1.0}\n',
    b'{"type": "params", "values": {"a": {"b": 1}}, "time": 1.0}\n',
    b'{"type": "artifact", "path": "../../etc/passwd", "folder": "", "time": 1.0}\n',
    b'{"type": "artifact", "path": "/etc/passwd", "folder": "", "time": 1.0}\n',
    b'{"type": "status", "status": "ASLEEP", "time": 1.0}\n',
]


@pytest.mark.parametrize("line", UNREADABLE)
@pytest.mark.parametrize("last", [False, True])
def test_an_unreadable_line_is_named_kept_and_passed_over(
    tmp_path: Path, line: bytes, last: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Spool(tmp_path, "train").metrics({"train/loss": 0.5}, 10)
    path = tmp_path / "spool" / "train.jsonl"
    damaged = path.read_bytes() + line
    path.write_bytes(damaged)
    if not last:
        Spool(tmp_path, "train").metrics({"train/loss": 0.4}, 20)
    resumed = Spool(tmp_path, "train")
    resumed.metrics({"train/loss": 0.4}, 20)
    assert path.read_bytes().startswith(damaged)
    assert [step for step, _, _ in read_metrics(tmp_path)["train/loss"]] == [10, 20]
    assert f"{path}: the line that ends at byte {len(damaged)} is unreadable" in caplog.text


def test_the_uploader_passes_commits_of_checkpoints_by(tmp_path: Path) -> None:
    run = tmp_path / "run"
    spool = Spool(run, "train")
    spool.checkpoint(100, "step-00000100-aaaa")
    spool.metrics({"train/loss": 0.5}, 100)
    spool.checkpoint(200, "step-00000200-aaaa")
    spool.close()
    events = [event for event, _ in read_events(run / "spool" / "train.jsonl")]
    assert [event["name"] for event in events if event["type"] == "checkpoint"] == [
        "step-00000100-aaaa",
        "step-00000200-aaaa",
    ]
    described = {"run": "run", "uid": "u", "experiment": "tests", "tracking_uri": default_tracking_uri(tmp_path)}
    write_json_atomic(run / "run.json", described)
    assert Uploader(run).drain() == 1
    assert not Uploader(run).pending()
    assert read_metrics(run).keys() == {"train/loss"}


def test_the_uploader_goes_on_behind_unreadable_lines(tmp_path: Path) -> None:
    uri = default_tracking_uri(tmp_path)
    write_json_atomic(tmp_path / "run.json", {"run": "r", "uid": "u", "tracking_uri": uri, "experiment": "tests"})
    spool = Spool(tmp_path, "train")
    spool.metrics({"train/loss": 0.5}, 10)
    path = tmp_path / "spool" / "train.jsonl"
    path.write_bytes(path.read_bytes() + b"".join(UNREADABLE))
    Spool(tmp_path, "train").metrics({"train/loss": 0.4}, 20)
    path.write_bytes(path.read_bytes() + UNREADABLE[0])
    uploader = Uploader(tmp_path)
    assert uploader.drain() == 2
    assert not uploader.pending()
    run_id = read_json(tmp_path / "spool" / "mlflow.json")["run_id"]
    assert [point.step for point in MlflowClient(uri).get_metric_history(run_id, "train/loss")] == [10, 20]


def points(run_directory: Path) -> list[tuple[int, float]]:
    return [(step, value) for step, value, _ in read_metrics(run_directory)["train/loss"]]


def written(run_directory: Path, steps: range, loss: float, **start: Any) -> None:
    """One attempt, from its first step to where it is killed."""
    spool = Spool(run_directory, "train")
    spool.start(steps.start - 1, **start)
    for step in steps:
        spool.metrics({"train/loss": loss}, step)
    spool.close()


def test_points_of_what_is_no_longer_trained_give_way_to_the_new_ones(tmp_path: Path) -> None:
    """The checkpoint of step 2 is resumed with other values, twice; then the other run is killed and goes on."""
    written(tmp_path, range(1, 6), 0.5, trained="one")
    written(tmp_path, range(3, 5), 0.4, trained="another")
    assert points(tmp_path) == [(1, 0.5), (2, 0.5), (3, 0.4), (4, 0.4)]
    written(tmp_path, range(3, 6), 0.3, trained="another")
    assert points(tmp_path) == [(1, 0.5), (2, 0.5), (3, 0.4), (4, 0.4), (5, 0.3)]
    written(tmp_path, range(5, 6), 0.2, trained="one")
    assert points(tmp_path) == [(1, 0.5), (2, 0.5), (3, 0.4), (4, 0.4), (5, 0.2)]


@pytest.mark.parametrize(("known", "expected"), [(True, 0.5), (False, 0.4)])
def test_a_spool_of_an_older_version_keeps_its_points_if_the_checkpoint_is_of_the_same(
    tmp_path: Path, known: bool, expected: float
) -> None:
    old = Spool(tmp_path, "train")
    for step in (1, 2, 3):
        old.metrics({"train/loss": 0.5}, step)
    old.close()
    written(tmp_path, range(3, 4), 0.4, trained="one", known=known)
    assert points(tmp_path) == [(1, 0.5), (2, 0.5), (3, expected)]


def test_mlflow_shows_the_new_points_last(tmp_path: Path) -> None:
    """It cannot delete a point, but takes the later of two at one step for the value."""
    uri = default_tracking_uri(tmp_path)
    write_json_atomic(tmp_path / "run.json", {"run": "r", "uid": "u", "tracking_uri": uri, "experiment": "tests"})
    written(tmp_path, range(1, 4), 0.5, trained="one")
    Uploader(tmp_path).drain()
    written(tmp_path, range(3, 4), 0.4, trained="another")
    Uploader(tmp_path).drain()
    run_id = read_json(tmp_path / "spool" / "mlflow.json")["run_id"]
    assert MlflowClient(uri).get_run(run_id).data.metrics["train/loss"] == 0.4
