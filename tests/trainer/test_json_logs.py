"""A run whose log is read by a machine: `RAYDDPM_LOG=json`."""

import json
from pathlib import Path
from typing import Any

from tests.support.failures.faults import TINY
from tests.support.trainer import command


def parsed(stderr: str) -> list[dict[str, Any]]:
    """Every line, or an error."""
    return [json.loads(line) for line in stderr.splitlines()]


def test_every_line_of_a_run_of_two_workers_one_of_which_fails_is_a_record(data: Path, tmp_path: Path) -> None:
    where = ("--data.path", str(data), "--run.storage", str(tmp_path), "--run.name", "run")
    two = ("--workers.num_workers", "2", "--train.num_steps", "4")
    fault = {"RAYDDPM_FAULT": "step.before:step=4:rank=1:raise", "RAYDDPM_LOG": "json"}
    ended = command(*TINY, *where, *two, **fault)
    assert ended.returncode == 0, ended.stderr
    records = parsed(ended.stderr)
    assert {"time", "level", "logger", "message"} <= set.intersection(*map(set, records))
    assert {record["run"] for record in records if "run" in record} == {"run"}
    from_steps = {
        record["message"].partition(" to ")[0]: record for record in records if "training from" in record["message"]
    }
    assert from_steps.keys() == {"training from step 0", "training from step 2"}
    resumed = from_steps["training from step 2"]
    assert (resumed["rank"], resumed["run"]) == (0, "run")
    failed = [record for record in records if "failed" in record["message"]]
    assert failed
    assert ended.stdout.startswith("run run in ")


def test_a_users_error_is_a_record(data: Path, tmp_path: Path) -> None:
    wrong = ("--data.path", str(tmp_path / "none"), "--run.storage", str(tmp_path), "--run.name", "run")
    ended = command(*TINY, *wrong, RAYDDPM_LOG="json")
    assert ended.returncode == 2
    (record,) = parsed(ended.stderr)
    assert record["level"] == "ERROR"
    assert record["message"].startswith("error: ")
    unknown = command(*TINY, *wrong, RAYDDPM_LOG="xml")
    assert unknown.returncode == 2
    assert unknown.stderr == "error: RAYDDPM_LOG is 'xml': it must be json or text\n"
