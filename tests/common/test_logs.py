"""Log lines as JSON: one object a record, whatever a record holds."""

import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest

from common.code import ROOT
from common.logs import JsonLines, as_json


def record(message: str, *arguments: object, **more: object) -> logging.LogRecord:
    return logging.LogRecord("some.module", logging.WARNING, __file__, 1, message, arguments, more.get("exc_info"))  # type: ignore[arg-type]


def test_a_record_is_one_line_with_time_level_and_what_is_known() -> None:
    formatter = JsonLines()
    formatter.about |= {"run": "some-run", "rank": 3, "step": 7}
    line = formatter.format(record('two\nlines and "%s"\u2028', "quotes"))
    assert len(line.splitlines()) == 1
    said = json.loads(line)
    time = datetime.fromisoformat(said.pop("time"))
    assert time.utcoffset() is not None
    assert said == {
        **{"level": "WARNING", "logger": "some.module", "run": "some-run", "rank": 3, "step": 7},
        "message": 'two\nlines and "quotes"\u2028',
    }


def test_an_exception_is_part_of_its_line() -> None:
    try:
        raise OSError("no room")
    except OSError:
        line = JsonLines().format(record("it failed", exc_info=sys.exc_info()))
    assert json.loads(line)["exception"].endswith("OSError: no room")
    assert "\n" not in line


def test_warnings_and_what_nobody_caught_are_records_too() -> None:
    code = (
        "import sys, warnings; from common.logs import start_logging, tell; start_logging(sys.stderr, '%(message)s'); "
    )
    code += "tell(run='r'); warnings.warn('careful'); raise RuntimeError('unexpected')"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"RAYDDPM_LOG": "json"}, capture_output=True, text=True, check=False
    )
    warned, uncaught = map(json.loads, ended.stderr.splitlines())
    assert ended.returncode == 1
    assert warned["level"] == "WARNING"
    assert "careful" in warned["message"]
    assert uncaught["level"] == "CRITICAL"
    assert uncaught["exception"].endswith("RuntimeError: unexpected")
    assert warned["run"] == uncaught["run"] == "r"


def test_the_variable_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in {"": False, "text": False, "json": True}.items():
        monkeypatch.setenv("RAYDDPM_LOG", value)
        assert as_json() is expected
    monkeypatch.setenv("RAYDDPM_LOG", "xml")
    with pytest.raises(ValueError, match="RAYDDPM_LOG is 'xml': it must be json or text"):
        as_json()
