"""How long the demo says it will take: it scales with the machine, and with what is left to do."""

from pathlib import Path

import pytest

from cluster import demo
from common.files import write_json_atomic


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(demo.os, "sched_getaffinity", lambda _: {0, 1})
    return tmp_path / "runs" / "demo-digits"


def minutes(run_directory: Path) -> int:
    words = demo._expected("digits", run_directory).split()
    assert words[:2] == ["digits:", "about"]
    return int(words[2])


@pytest.mark.parametrize(("slower", "expected"), [(1, 3), (4, 12)])
def test_a_slower_core_takes_longer(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch, slower: int, expected: int
) -> None:
    monkeypatch.setattr(demo, "_core_speed", lambda: demo._REFERENCE_SPEED / slower)
    assert minutes(run_directory) == expected


def test_what_is_trained_already_is_not_counted(run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_core_speed", lambda: demo._REFERENCE_SPEED / 4)
    checkpoint = run_directory / "checkpoints" / "step-00001000-0000abcd"
    checkpoint.mkdir(parents=True)
    write_json_atomic(run_directory / "run.json", {"num_steps": 2000})
    write_json_atomic(checkpoint / "COMPLETE.json", {})
    assert minutes(run_directory) == 7


def test_a_core_has_a_speed() -> None:
    """In MB/s: no machine that this runs on compresses less than one or more than a hundred thousand."""
    assert 1 < demo._core_speed() < 100_000
