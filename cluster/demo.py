"""`make demo`: the commands of the other packages, in order, on a local cluster. What it does, a user can type."""

import math
import os
import random
import re
import shlex
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from cluster import local
from cluster.progress import ProgressBar
from cluster.run_directory import RUN, complete_checkpoints, newest_step
from cluster.submit import Jobs
from cluster.tracking.view import where_to_look
from common.code import command
from common.files import read_json
from common.interrupt import Interrupted


class _Subject(NamedTuple):
    """What is trained on, and how long all of it takes."""

    preset: str
    image_size: int
    training_seconds: float
    """With the evaluation beside it, on two cores of the machine of docs/EXPERIMENTS.md"""


_SUBJECTS = {
    "digits": _Subject("demo", 8, 130.0),
    "faces": _Subject("demo_faces", 16, 190.0),
}
SubjectName = Literal["digits", "faces"]
_OTHER_SECONDS = 40.0
"""Packing, the start of Ray and of the processes, samples and report, likewise"""
_REFERENCE_SPEED = 190.0
"""What `_core_speed()` gives on such a core: taken on a Xeon, which trains about as fast"""
_NUM_COMPRESSIONS = 200
_PROTOCOL = "fd_efficientnet_lite0_512_ddim20"
_NUM_SAMPLING_STEPS = 100
_START_SECONDS = 300.0


class DemoError(RuntimeError):
    """A step of the demo failed; the message is what it printed last."""


def run_demo(subject: SubjectName, folder: Path, options: Sequence[str] = ()) -> None:
    """Pack, train on 2 Ray workers with evaluation beside, sample, report. Run again, it resumes or says so.

    folder: `data/`, `runs/` and `reports/` are made here. options: of the training, beside the preset's.
    Raises Interrupted on Ctrl-C.
    """
    try:
        _run_demo(subject, folder, options)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"the demo is stopped; what is done is kept in {folder}, and the same command goes on from there"
        ) from error


def _run_demo(subject: SubjectName, folder: Path, options: Sequence[str]) -> None:
    started = time.monotonic()
    folder = folder.resolve()
    data, storage = folder / "data" / subject, folder / "runs"
    run_directory = storage / f"demo-{subject}"
    report = folder / "reports" / f"demo-{subject}.html"
    print(f"{_expected(subject, run_directory)}; the bar tells it better. Ctrl-C keeps what is done", flush=True)
    if (data / "manifest.json").exists():  # written last
        _say("1/5", f"packed already: {data}")
    else:
        _say("1/5", f"packing {subject} into WebDataset shards")
        _command("data", "demo", subject, str(data), "--image-size", str(_SUBJECTS[subject].image_size))
    _say("2/5", "Ray on loopback")
    cluster = local.up(with_this_process=True)
    ours = cluster.owner_pid == os.getpid()
    try:
        _train_and_evaluate(Jobs(cluster.dashboard), subject, data, run_directory, options)
    finally:
        if ours:
            local.down()
    _say("4/5", "sampling from the averaged weights")
    samples = run_directory / "samples"
    newest = complete_checkpoints(run_directory)[-1]
    how = ("--num-images", "256", "--num-sampling-steps", str(_NUM_SAMPLING_STEPS))
    _command("models", "sample", str(newest), *how, "--output", str(samples))
    _say("5/5", "writing the report")
    report.parent.mkdir(exist_ok=True)
    _command("eval", "report", str(run_directory), "--output", str(report))
    print(f"\ndone in {time.monotonic() - started:.0f} s")
    print(f"  report   {report}")
    print(f"  samples  {samples}")
    print(f"  run      {run_directory}")
    shown = where_to_look(run_directory, str(Path(sys.executable).with_name("mlflow")))
    print(f"  MLflow   {shown[0]}", *shown[1:], sep="\n           ")


def _expected(subject: SubjectName, run_directory: Path) -> str:
    """How long what is left of the demo takes where nothing else runs, as a sentence."""
    left = 1.0
    if (run_directory / RUN).exists():
        left = 1.0 - newest_step(run_directory) / int(read_json(run_directory / RUN)["num_steps"])
    seconds = _OTHER_SECONDS + max(0.0, left) * _SUBJECTS[subject].training_seconds
    cores = min(2, len(os.sched_getaffinity(0)))
    minutes = math.ceil(seconds * _REFERENCE_SPEED / _core_speed() * 2 / cores / 60)
    unit = "minute" if minutes == 1 else "minutes"
    return f"{subject}: about {minutes} {unit} on this machine, more beside other work"


def _core_speed() -> float:
    """What a core does, however busy: MB compressed by zlib in a second of its time.

    Training on a CPU has much of plain work like this one's around its products of matrices.
    """
    data = random.Random(0).randbytes(1 << 14) * 8
    started = time.process_time()
    for _ in range(_NUM_COMPRESSIONS):
        zlib.compress(data)
    return _NUM_COMPRESSIONS * len(data) / (time.process_time() - started) / 1e6


def _train_and_evaluate(jobs: Jobs, subject: str, data: Path, run_directory: Path, options: Sequence[str]) -> None:
    """Two Ray jobs: the training, and beside it the evaluator, which ends when every checkpoint has its number."""
    storage = run_directory.parent
    train = shlex.join(
        [
            *("python", "trainer/main.py", "--preset", _SUBJECTS[subject].preset),
            *("--run.name", run_directory.name, "--run.storage", str(storage), "--data.path", str(data)),
            *options,
        ]
    )
    evaluate = shlex.join(
        [
            *("python", "-m", "eval", "serve", str(storage), "--run", run_directory.name),
            *("--protocol", _PROTOCOL, "--num-threads", "1", "--until-finished"),
        ]
    )
    _say("3/5", f"ray job submit --working-dir . -- {train}")
    training = jobs.submit(train)
    evaluation = jobs.submit(evaluate)
    try:
        _wait_until(lambda: (run_directory / RUN).exists() or jobs.ended(training), _START_SECONDS)
        _require(not jobs.ended(training) or jobs.succeeded(training), jobs, training)
        with ProgressBar(run_directory):
            _wait_until(lambda: jobs.ended(training))
        _require(jobs.succeeded(training), jobs, training)
        finished = re.search(r"^finished already .*$", jobs.logs(training), re.MULTILINE)
        print(finished[0] if finished else "training is done; the last evaluations are under way", flush=True)
        _wait_until(lambda: jobs.ended(evaluation))
        _require(jobs.succeeded(evaluation), jobs, evaluation)
    except KeyboardInterrupt:
        print("stopping the training with a checkpoint; once more to stop at once", file=sys.stderr, flush=True)
        raise
    finally:
        jobs.stop_and_wait(training, evaluation)


def _require(condition: bool, jobs: Jobs, job: str) -> None:
    if not condition:
        raise DemoError(f"job {job} failed; the end of its log:\n{jobs.logs(job)[-3000:]}")


def _command(*arguments: str) -> None:
    """Run one of our commands, its output shown.

    It is out of reach of the terminal's Ctrl-C, of which this process alone speaks.
    """
    finished = subprocess.run(command(*arguments), check=False, start_new_session=True)
    if finished.returncode:
        raise DemoError(f"rayddpm {shlex.join(arguments)} ended with exit code {finished.returncode}")


def _wait_until(condition: Callable[[], bool], timeout_seconds: float = float("inf")) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(f"nothing happened for {timeout_seconds:.0f} s")
        time.sleep(0.5)


def _say(number: str, text: str) -> None:
    print(f"[{number}] {text}", flush=True)
