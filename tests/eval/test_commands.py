"""`python -m eval`: commands, their exit codes, and one helpful line for whatever a user gets wrong."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eval.backlog import Selection, jobs_of_run
from eval.cli.commands import main
from eval.protocol import parse_protocol
from eval.results import all_results
from eval.service.runner import Runner
from eval.settings import EvaluationSettings
from tests.support.evaluation import make_checkpoint, make_run

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
        (["run"], "RUN_DIRECTORY is missing"),
        (["run", "/nowhere"], "/nowhere holds no run.json"),
        (["run", "RUN", "--protocol", "fid_50k"], "fid_50k"),
        (["run", "RUN", "--checkpoint", "150"], "there are: 100"),
        (["run", "RUN", "--checkpoint", "x"], "--checkpoint x"),
        (["run", "RUN", "--num-threads", "0"], "num_threads is 0"),
        (["run", "RUN", "--no-such-option", "1"], "--no-such-option"),
        (["serve", "RUN", "--every-steps", "0"], "every_steps is 0"),
        (["serve", "RUN", "--order", "random"], "--order random"),
        (["serve", "RUN", "--protocol", "unheard_of_1k"], "unheard_of_1k"),
        (["serve", "RUN", "--poll-seconds", "0"], "poll_seconds=0"),
        (["serve", "RUN", "--port", "0"], "port=0"),
        (["serve", "RUN", "--port", "65536"], "port=65536"),
        (["serve", "/nowhere", "--once"], "/nowhere does not exist"),
        (["report", "/nowhere"], "/nowhere"),
        (["report", "RUN", "--output", "r.json"], "r.json"),
        (["neighbours", "RUN", "--protocol", "is_efficientnet_lite0_16"], "no features to compare"),
        (["neighbours", "RUN", "--protocol", "bits_per_dim_16"], "no features to compare"),
        (["neighbours", "RUN", "--protocol", "fid_clean_16", "--weights-folder", "/nowhere"], "fetch-weights"),
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


def run_without_mlflow(storage: Path) -> Path:
    """A run whose MLflow server is away, which is sooner found than a database is made."""
    run = make_run(storage, steps=(100,))
    described = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(described | {"tracking_uri": "http://127.0.0.1:9"}))
    return run


def one_error(capfd, *arguments: str) -> str:
    """What a command that must end with exit code 2 says, in its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    [line] = capfd.readouterr().err.strip().splitlines()
    return line


def test_a_port_that_is_taken_is_refused_at_once(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    make_run(tmp_path / "runs", steps=(100,))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = one_error(capfd, "serve", tmp_path / "runs", "--port", port, "--once", *FAST)
    assert f"port={port}: Address already in use" in said


def test_an_mlflow_that_is_away_ends_register_in_one_line(tmp_path, capfd):
    run = run_without_mlflow(tmp_path / "runs")
    assert main(["run", str(run), "--protocol", "bits_per_dim_2", *FAST]) == 0
    capfd.readouterr()
    assert "MLflow at http://127.0.0.1:9" in one_error(capfd, "register", run, "--protocol", "bits_per_dim_2")


@pytest.mark.parametrize(
    "arrays",
    [
        None,
        b"",
        b"PK\x03\x04junk",
        {"mu": np.zeros((1, 1280)), "sigma": np.eye(1280)},
        {"mu": np.zeros(1280), "sigma": np.full((1280, 1280), np.nan)},
        {"mu": np.array("x"), "sigma": np.eye(1280)},
        {"mu": np.zeros(1000), "sigma": np.eye(1280)},
        {"mu": np.zeros(1280)},
    ],
)
def test_a_file_that_holds_no_statistics_is_refused(tmp_path, capfd, arrays):
    file = tmp_path / "published.npz"
    if arrays is None:
        with open(file, "wb") as array:
            np.save(array, np.zeros(3))
    elif isinstance(arrays, bytes):
        file.write_bytes(arrays)
    else:
        np.savez(file, **arrays)
    protocol = ["--protocol", "fd_efficientnet_lite0_512"]
    assert "published.npz" in one_error(
        capfd, "import-reference", file, tmp_path / "runs", "--num-images", "10", *protocol
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_that_is_told_to_stop_ends_cleanly_and_goes_on_later(tmp_path, number):
    run = make_run(tmp_path / "runs", steps=(100,))
    command = [sys.executable, "-m", "eval", "run", str(run), "--protocol", "bits_per_dim_40", *FAST]
    command += ["--block-images", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(run.glob("evals/*/.work-*/*/block-*.npy")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines() == [
        "stopped; finished evaluations and blocks are kept, and the same command goes on from there"
    ]
    assert not list(run.glob("evals/*/*.lease"))
    settings = EvaluationSettings(device="cpu", num_threads=1, num_bootstrap=0, block_images=2)
    [job] = jobs_of_run(run, [parse_protocol("bits_per_dim_40")], Selection())
    assert Runner(settings, upload=lambda run_directory: None).run(job)["num_blocks_resumed"] >= 1


def test_once_says_by_its_exit_code_that_something_has_no_number(tmp_path):
    run_without_mlflow(tmp_path / "runs")
    blocked = ["--protocol", "fid_clean_8_ddim2", "--weights-folder", str(tmp_path), *FAST]
    for _ in ("tried now", "to be tried again later"):
        assert main(["serve", str(tmp_path / "runs"), "--once", *blocked]) == 1
