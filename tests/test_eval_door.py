"""The door: commands, their exit codes, and one helpful line for whatever a user gets wrong."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.__main__ import COMMANDS, main
from eval.results import all_results
from tests.eval_support import make_checkpoint, make_run

FAST = ["--device", "cpu", "--num-threads", "1", "--num-bootstrap", "0"]
PROTOCOL = "fd_efficientnet_lite0_8_ddim2"


def test_run_prints_the_number_and_where_its_file_is(tmp_path, capsys):
    run = make_run(tmp_path / "runs", steps=(100, 200))
    assert main(["run", str(run), "--protocol", PROTOCOL, "--checkpoint", "100", *FAST]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"run-a step 100: {PROTOCOL} = ")
    assert json.loads(Path(said[1]).read_text())["step"] == 100


def test_a_blocked_evaluation_ends_with_exit_code_1(tmp_path, capsys):
    run = make_run(tmp_path / "runs", steps=(100,))
    arguments = ["run", str(run), "--protocol", "fid_clean_8_ddim2", "--weights-folder", str(tmp_path), *FAST]
    assert main(arguments) == 1
    assert "fetch-weights" in capsys.readouterr().out


def test_serve_then_report(tmp_path, capsys):
    run = make_run(tmp_path / "runs", steps=(100, 200, 300))
    options = ["--protocol", PROTOCOL, "--every-steps", "200", "--until-finished", *FAST]
    assert main(["serve", str(tmp_path / "runs"), *options]) == 0
    assert main(["report", str(run), "--output", str(tmp_path / "out" / "report.html")]) == 0
    assert "step 300" in (tmp_path / "out" / "report.html").read_text()
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [result["step"] for result in data["runs"][0]["evaluations"]] == [200, 300]
    assert capsys.readouterr().out.splitlines()[-1].endswith("report.html")


def test_once_as_cron_would_run_it(tmp_path):
    """Two starts that overlap, then one with a new checkpoint, then one with nothing to do: each ends by itself."""
    run = make_run(tmp_path / "runs", steps=(100, 200), finished=False)
    command = [sys.executable, "-m", "eval", "serve", str(tmp_path / "runs"), "--once", "--protocol", PROTOCOL, *FAST]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    overlapping = [start(), start()]
    said = [process.communicate(timeout=300)[0] for process in overlapping]
    assert [process.returncode for process in overlapping] == [0, 0]
    assert sum(text.count(f"{PROTOCOL} = ") for text in said) == 2
    make_checkpoint(run, 300)
    for expected in (1, 0):
        process = start()
        text, errors = process.communicate(timeout=300)
        assert (process.returncode, text.count(f"{PROTOCOL} = ")) == (0, expected), errors
    assert [(result["step"], result["attempts"]) for result in all_results(run)] == [(100, 1), (200, 1), (300, 1)]
    assert not list((tmp_path / "runs" / "evaluators").glob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run"], "run_directory"),
        (["run", "/nowhere"], "/nowhere holds no run.json"),
        (["run", "RUN", "--protocol", "fid_50k"], "fid_50k"),
        (["run", "RUN", "--checkpoint", "150"], "there are: 100"),
        (["run", "RUN", "--checkpoint", "x"], "--checkpoint x"),
        (["run", "RUN", "--num-threads", "0"], "num_threads=0"),
        (["run", "RUN", "--no-such-option", "1"], "--no-such-option"),
        (["serve", "RUN", "--every-steps", "0"], "every_steps=0"),
        (["serve", "RUN", "--order", "random"], "--order random"),
        (["serve", "RUN", "--protocol", "unheard_of_1k"], "unheard_of_1k"),
        (["report", "/nowhere"], "/nowhere"),
        (["judge"], "judge"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(tmp_path, capfd, arguments, named):
    run = make_run(tmp_path / "runs", steps=(100,))
    assert main([str(run) if argument == "RUN" else argument for argument in arguments]) == 2
    output = capfd.readouterr()
    assert named in output.err
    assert len(output.err.strip().splitlines()) == 1
    assert output.err.startswith("error: ")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "--num_" not in text
    for name, parameter in inspect.signature(COMMANDS[command]).parameters.items():
        if not dataclasses.is_dataclass(parameter.annotation):
            assert name.replace("_", "-") in text or name.upper() in text
            assert re.search(rf"^ +{name}: \S+", COMMANDS[command].__doc__, re.MULTILINE), name
