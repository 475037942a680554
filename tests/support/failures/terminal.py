"""A command in a real terminal: Ctrl-C is the key, which the kernel turns into a signal to the foreground processes."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.tracking.spool import read_events
from common.code import ROOT

_MARKER = "RAYDDPM_TEST_MARKER"
NEVER = "1000000"
_KEY = b"\x03"


class Terminal:
    """`with Terminal([...]) as terminal:`; what still runs at the end, because a test failed, is killed."""

    def __init__(self, arguments: list[str], num_columns: int = 80, environment: Mapping[str, str] | None = None):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, num_columns, 0, 0))
        self._marker = uuid.uuid4().hex
        self._output, self._pressed = bytearray(), time.monotonic()
        self.process = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", **(environment or {}), _MARKER: self._marker},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.left_over():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self.process.wait()
        os.close(self._master)

    @property
    def output(self) -> str:
        return self._output.decode(errors="replace")

    def wait_for(self, condition: Callable[[], bool], seconds: float = 600.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        os.write(self._master, _KEY)
        self._pressed = time.monotonic()

    def wait(self, seconds: float = 600.0) -> int:
        """The exit code, once nothing it started is left."""
        code = self.process.wait(seconds)
        print(f"ended {time.monotonic() - self._pressed:.1f} s after the last Ctrl-C")
        deadline = time.monotonic() + 30
        while (left := self.left_over()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, [Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
        return code

    def has_mapped(self, name: str) -> bool:
        """Whether the process has loaded a library whose path holds `name`."""
        return name in Path(f"/proc/{self.process.pid}/maps").read_text()

    def left_over(self) -> list[int]:
        """Processes that have the environment of this terminal."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self._marker.encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the last process that has the terminal open is gone
            while data := os.read(self._master, 65536):
                self._output += data


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
    shown = re.sub(r"\x1b\[[0-9;?]*[A-JL-Za-z]", "", terminal.output).rstrip()
    return re.split(r"\r|\n|\x1b\[2K", shown)[-1].removeprefix("^C")  # the terminal's echo of the key


def assert_ends_well(terminal: Terminal, line: str) -> None:
    code = terminal.wait()
    print(last_line(terminal))
    assert code == 130, terminal.output
    assert "Traceback" not in terminal.output
    assert re.search(line, last_line(terminal)), terminal.output


def says_killed(run: Path) -> bool:
    events = [event for event, _ in read_events(run / "spool" / "run.jsonl")]
    return [event["status"] for event in events if event["type"] == "status"][-1] == "KILLED"
