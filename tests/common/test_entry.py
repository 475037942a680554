"""How a command ends: by a signal at any moment, even while it imports, and when nobody reads its output."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from common.code import ROOT
from common.entry import guarded

_MAIN = "import sys; from common.entry import start; sys.exit(start({module!r}))"
_MODULE = """
import pathlib, signal, sys, time
def wait(name):
    pathlib.Path(name).touch()
    while True:
        time.sleep(0.01)
if sys.argv[1] == "importing":
    wait("importing")
def main(arguments):
    if arguments[0] == "running":
        wait("running")
    return 0
if sys.argv[1] == "ending":
    import atexit
    atexit.register(wait, "ending")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["importing", "running", "ending"])
def test_a_signal_at_any_moment_ends_with_code_130_and_no_traceback(
    moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "told_to_wait.py").write_text(_MODULE)
    process = subprocess.Popen(
        [sys.executable, "-c", _MAIN.format(module="told_to_wait"), moment],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / moment).exists():
        assert process.poll() is None
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == ("" if moment == "ending" else "interrupted before it began\n")


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys
        from common.entry import guarded
        def body():
            for number in range(100_000):
                print(number)
            return 0
        sys.exit(guarded(body, ""))
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


def test_another_pipe_that_breaks_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise BrokenPipeError("the server hung up")

    assert guarded(body, "") == 2
    assert capfd.readouterr().err == "error: the server hung up\n"


def test_sigterm_is_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(lambda: int(signal.getsignal(signal.SIGTERM) is before), "") == 0
    assert signal.getsignal(signal.SIGTERM) is before
