"""What tests of interrupted commands share: trainings that do not end by themselves, and what a good end looks like."""

import re
import sys
from pathlib import Path

from cluster.tracking.spool import read_events
from tests.support.terminal import Terminal

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
