"""Ctrl-C at every moment of every command, in a real terminal: one line, exit code 130, nothing left running."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.progress import has_trained, read_progress
from cluster.storage import complete_directories
from cluster.tracking.spool import read_events
from tests.support.terminal import Terminal
from tests.support.trainer import TINY_MODEL
from trainer.checkpoint import step_of

pytestmark = pytest.mark.heavy

Moment = Callable[[Terminal], bool]
NEVER = "1000000"


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def training(data: Path, storage: Path, launcher: str, num_workers: int) -> list[str]:
    model = (
        "--model.channel_multipliers",
        "[1]",
        "--model.num_res_blocks",
        "1",
        "--model.attention_resolutions",
        "[8]",
    )
    return python(
        *("trainer/main.py", "--preset", "demo", "--launcher", launcher, *model, "--data.path", str(data)),
        *("--run.storage", str(storage), "--run.name", "run", "--train.num_steps", NEVER),
        *("--train.global_batch_size", "12", "--checkpoint.every_steps", NEVER, "--train.log_every_steps", "1"),
        *("--workers.num_workers", str(num_workers)),
    )


def last_line(terminal: Terminal) -> str:
    """What stands in the last line of the terminal, without what was cleared away."""
    shown = re.sub(r"\x1b\[[0-9;?]*[A-JL-Za-z]", "", terminal.output.rstrip())
    return re.split(r"\r|\n|\x1b\[2K", shown)[-1]


def assert_ends_well(terminal: Terminal, line: str) -> None:
    code = terminal.wait()
    print(last_line(terminal))
    assert code == 130, terminal.output
    assert "Traceback" not in terminal.output
    assert re.search(line, last_line(terminal)), terminal.output


def says_killed(run: Path) -> bool:
    events = [event for event, _ in read_events(run / "spool" / "run.jsonl")]
    return [event["status"] for event in events if event["type"] == "status"][-1] == "KILLED"


def test_while_training_imports_its_libraries(data: Path, tmp_path: Path) -> None:
    with Terminal(training(data, tmp_path, "local", 1)) as terminal:
        terminal.wait_for(lambda: terminal.has_mapped("libtorch_cpu"))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^interrupted before")


def test_while_two_workers_start(data: Path, tmp_path: Path) -> None:
    with Terminal(training(data, tmp_path, "local", 2)) as terminal:
        terminal.wait_for(lambda: len(terminal.left_over()) >= 3)
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^stopped before there was a checkpoint; the same command starts the run again$")
    assert says_killed(tmp_path / "run")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_once_while_training_it_ends_with_a_checkpoint(data: Path, tmp_path: Path, num_workers: int) -> None:
    run = tmp_path / "run"
    with Terminal(training(data, tmp_path, "local", num_workers), num_columns=60) as terminal:
        terminal.wait_for(lambda: has_trained(run))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, r"^stopped with a checkpoint of step \d+; the same command goes on from it$")
    (kept,) = complete_directories(run / "checkpoints")
    assert f"checkpoint of step {step_of(kept)};" in terminal.output
    assert says_killed(run)


def test_twice_while_training_it_ends_at_once(data: Path, tmp_path: Path) -> None:
    """Workers that do not come to the end of their step, for a minute, as on storage that hangs."""
    run = tmp_path / "run"
    fault = {"RAYDDPM_FAULT": "step.before:step=4:delay=600"}
    with Terminal(training(data, tmp_path, "local", 2), environment=fault) as terminal:
        terminal.wait_for(lambda: has_trained(run) and (run / "faults").exists())
        terminal.press_ctrl_c()
        terminal.wait_for(lambda: "once more to stop at once" in terminal.output)
        time.sleep(1.2)  # sooner it is the same request
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^ended at once before there was a checkpoint; the same command starts the run")
    assert says_killed(run)
    assert not (run / "lease.json").exists()


def test_a_stop_that_cannot_be_written_reaches_the_workers_by_a_signal(data: Path, tmp_path: Path) -> None:
    """A link to nowhere stands where STOP belongs: it cannot be written, as on a full disk."""
    run = tmp_path / "run"
    with Terminal(training(data, tmp_path, "local", 2)) as terminal:
        terminal.wait_for(lambda: has_trained(run))
        (run / "STOP").symlink_to(tmp_path / "missing" / "STOP")
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^stopped with a checkpoint of step")
    assert "they are sent a signal" in terminal.output


def test_while_packing_what_is_packed_is_kept(tmp_path: Path) -> None:
    faces = python("-m", "data_pipeline", "demo", "faces", str(tmp_path / "faces"), "--num-images", "200000")
    with Terminal([*faces, "--num-processes", "2"]) as terminal:
        terminal.wait_for(lambda: any(tmp_path.rglob("*.tar*")))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "kept|interrupted")


def test_while_sampling(tmp_path: Path) -> None:
    from models.config import DiffusionConfig
    from models.networks.table import build_model
    from models.snapshot import write_snapshot

    tensors = build_model(TINY_MODEL).state_dict()
    write_snapshot(tmp_path / "snapshot", tensors, TINY_MODEL, DiffusionConfig(), {})
    sample = python("-m", "models", "sample", str(tmp_path / "snapshot"), "--num-images", "100000")
    with Terminal([*sample, "--output", str(tmp_path / "samples")]) as terminal:
        terminal.wait_for(lambda: "sampling" in terminal.output)
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "interrupted|stopped")


@pytest.mark.ray
@pytest.mark.parametrize("moment", ["starting Ray", "waiting for room", "training"])
def test_under_ray(data: Path, tmp_path: Path, moment: str) -> None:
    """While workers are waited for, no worker looks for a stop."""
    run = tmp_path / "run"

    def has_come(terminal: Terminal) -> bool:
        return str(read_progress(run).get("phase", "")).startswith(moment)

    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Terminal(training(data, tmp_path, "ray", 2), environment=home) as terminal:
        terminal.wait_for(lambda: has_come(terminal))
        terminal.press_ctrl_c()
        kept = "with a checkpoint of step" if moment == "training" else "before there was a checkpoint"
        assert_ends_well(terminal, f"^stopped {kept}")
    assert says_killed(run)


@pytest.mark.ray
def test_the_demo(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    code = f"from pathlib import Path; from cluster.demo import run_demo; run_demo('digits', Path({str(tmp_path)!r}))"
    guarded = (
        "import sys\nfrom common.interrupt import INTERRUPTED, sigterm_interrupts\n"
        f"try:\n    with sigterm_interrupts():\n        {code}\n"
        "except KeyboardInterrupt as error:\n    print(error); sys.exit(INTERRUPTED)\n"
    )
    run = tmp_path / "runs" / "demo-digits"
    with Terminal(python("-c", guarded), environment=home) as terminal:
        terminal.wait_for(lambda: has_trained(run))
        terminal.press_ctrl_c()
        assert_ends_well(terminal, "^the demo is stopped")
    assert complete_directories(run / "checkpoints")
    assert says_killed(run)
