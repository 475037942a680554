"""The syntax of RAYDDPM_FAULT, when a fault is due, and what it does to a process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.fault import POINTS, Fault, Faults, parse_faults
from common.code import ROOT


def test_faults_are_read_with_their_conditions() -> None:
    assert parse_faults("") == ()
    text = "save.after_write:step=40:rank=0:kill, step.before:again:delay=0.5,step.loss:rank=1:nan"
    assert parse_faults(text) == (
        Fault("save.after_write:step=40:rank=0:kill", "save.after_write", "kill", step=40, rank=0),
        Fault("step.before:again:delay=0.5", "step.before", "delay", 0.5, again=True),
        Fault("step.loss:rank=1:nan", "step.loss", "nan", rank=1),
    )
    assert all(parse_faults(f"{point}:raise") for point in POINTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("save.afterwards:kill", "there is no point 'save.afterwards'; there are step.before, "),
        ("step.before", "must end with an action: kill"),
        ("step.before:explode", "must end with an action: kill"),
        ("step.before:delay", "must end with an action: kill"),
        ("step.before:nan", "must end with an action: kill"),
        ("step.before:kill:step=4", "'kill' is not understood; allowed are step=N, rank=N and again"),
        ("step.before:step=four:kill", "'step=four' is not understood"),
        ("step.before:step=0:kill", "the first update is step=1"),
        ("save.in_write:rank=1:kill", "rank 0 alone writes checkpoints"),
        ("upload.after:rank=0:kill", "the launching process uploads"),
        ("fetch.before:step=4:raise", "belong to no step"),
    ],
)
def test_what_could_never_happen_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^RAYDDPM_FAULT ") as raised:
        parse_faults(f"step.after:kill,{text}")
    assert message in str(raised.value)


def test_a_wrong_fault_is_a_users_error_before_anything_starts(tmp_path: Path) -> None:
    command = [sys.executable, "trainer/main.py", "--preset", "demo", "--run.storage", str(tmp_path / "runs")]
    environment = {**os.environ, "RAYDDPM_FAULT": "step.before:kil"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: RAYDDPM_FAULT 'step.before:kil' must end with an action")
    assert not (tmp_path / "runs").exists()


def test_a_fault_happens_at_its_point_step_and_rank_alone(tmp_path: Path) -> None:
    faults = Faults("step.before:step=4:rank=1:raise", tmp_path, rank=1)
    faults("step.before", 3)
    faults("step.after", 4)
    Faults("step.before:step=4:rank=1:raise", tmp_path, rank=0)("step.before", 4)
    with pytest.raises(OSError, match=r"fault on purpose: step\.before:step=4:rank=1:raise"):
        faults("step.before", 4)


def test_a_fault_happens_once_to_a_run_and_rank_unless_it_says_again(tmp_path: Path) -> None:
    for rank in (0, 1):
        with pytest.raises(OSError, match="on purpose"):
            Faults("step.before:raise", tmp_path, rank)("step.before", 7)
    Faults("step.before:raise", tmp_path, 0)("step.before", 7)
    assert {path.name for path in (tmp_path / "faults").iterdir()} == {
        "step.before:raise.rank-0.json",
        "step.before:raise.rank-1.json",
    }
    assert json.loads((tmp_path / "faults" / "step.before:raise.rank-1.json").read_text())["step"] == 7
    for _ in range(2):
        with pytest.raises(OSError, match="on purpose"):
            Faults("step.before:again:raise", tmp_path, 0)("step.before", 7)


def test_losses_become_nan_and_a_delay_passes(tmp_path: Path) -> None:
    faults = Faults("step.loss:step=2:nan,upload.before:delay=0.2", tmp_path)
    assert [faults("step.loss", step) for step in (1, 2, 2, 3)] == [False, True, False, False]
    started = time.monotonic()
    faults.at("upload")("before")
    assert time.monotonic() - started >= 0.2
    assert not Faults()
    assert faults


@pytest.mark.parametrize(("action", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_a_process_is_killed_or_stopped(tmp_path: Path, action: str, number: signal.Signals) -> None:
    code = f"from cluster.fault import Faults; from pathlib import Path; Faults('fetch.after:{action}', Path('.'))"
    running = subprocess.Popen(
        [sys.executable, "-c", f"{code}('fetch.after')"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status = os.waitpid(running.pid, os.WUNTRACED)
    if number == signal.SIGSTOP:
        assert os.WIFSTOPPED(status)
        running.kill()
        running.wait()
    else:
        assert os.WTERMSIG(status) == number
