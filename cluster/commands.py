"""The commands of `python -m cluster`: up, down, status, submit -- ARGS, upload RUN_DIR, demo."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cluster import local
from cluster.run_directory import RUN
from common.command_line import CommandLine, run


def up(num_cpus: int | None = None) -> None:
    """Start a Ray cluster on this machine, bound to loopback.

    Args:
        num_cpus: cores Ray may schedule; all of the machine's if not given.
    """
    cluster = local.up(num_cpus)
    print(f"Ray at {cluster.address}, dashboard and job API at {cluster.dashboard}")
    print("for Ray's own commands: export RAY_AUTH_MODE=token RAY_API_SERVER_ADDRESS=" + cluster.dashboard)


def down() -> None:
    """Stop the cluster that `up` started."""
    print("stopped" if local.down() else "there was nothing to stop")


def status() -> int:
    """Say whether the cluster that `up` starts is running, and where. Exit code 1 if it is not."""
    cluster = local.find()
    print(f"Ray at {cluster.address}, dashboard {cluster.dashboard}" if cluster else "not running")
    return 0 if cluster else 1


def upload(run_directory: Path) -> None:
    """Send to MLflow what an outage kept in a run's spool.

    Args:
        run_directory: folder of the run, with its run.json.
    """
    from cluster.tracking.uploader import Uploader, UploadError

    if not (run_directory / RUN).exists():
        raise FileNotFoundError(f"{run_directory} holds no run.json: give a run's own folder")
    try:
        num_sent = Uploader(run_directory).drain(wait_seconds=10.0)
    except UploadError as error:
        raise OSError(f"MLflow did not take all of {run_directory / 'spool'}, which keeps the rest: {error}") from error
    if num_sent is None:
        raise OSError(f"another process is sending {run_directory / 'spool'} to MLflow: wait for it, then try again")
    print(f"sent {num_sent} events")


def demo(name: Literal["digits", "faces"], output: Path = Path()) -> None:
    """Train, evaluate and report on images that need no download, in a few minutes on 2 cores; it says how long first.

    Args:
        name: digits (scikit-learn's handwritten digits) or faces (drawn by a program).
        output: folder in which data/, runs/ and reports/ are made
    """
    from cluster.demo import run_demo

    run_demo(name, output)


def submit(*arguments: str) -> int:
    """Run a training as a Ray job on the cluster that `up` started, and follow its log: submit -- ARGS.

    ARGS are those of `python trainer/main.py`; --help shows them there. Ctrl-C stops the job. Paths in ARGS must be
    absolute: a job runs in a copy of the code.
    """
    from cluster.submit import Jobs

    cluster = local.find()
    if cluster is None:
        raise FileNotFoundError("no cluster is running here: start one with python -m cluster up")
    jobs = Jobs(cluster.dashboard)
    job = jobs.submit(shlex.join(["python", "trainer/main.py", *arguments]))
    return 0 if jobs.follow(job) else 1


COMMAND_LINE = CommandLine(
    prog="python -m cluster",
    description="Where things run: a local cluster, jobs, MLflow.",
    commands={"up": up, "down": down, "status": status, "submit": submit, "upload": upload, "demo": demo},
    examples=("demo digits", "up", "submit -- --preset cifar10 --data.path /data/cifar10 --run.storage /runs"),
    interrupted={
        "demo": "stopped; what is done is kept, and the same command goes on from there",
        "upload": "interrupted; what was not sent is kept, and the same command goes on from there",
    },
    errors=(RuntimeError,),
)


def main(arguments: Sequence[str], prog: str | None = None) -> int:
    """Exit code: 0 done, 1 it is not running, or the job failed, 2 a user's error, 130 interrupted."""
    return run(COMMAND_LINE, arguments, prog)
