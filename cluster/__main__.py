"""The door of the cluster: `python -m cluster up | down | status | submit -- ARGS | upload RUN_DIR | demo`."""

import shlex
import sys
from pathlib import Path
from typing import Literal

from cluster import local
from common.command_line import USER_ERROR, Command, run_command


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


def status() -> None:
    """Say whether the cluster that `up` starts is running, and where. Exit code 1 if it is not."""
    cluster = local.find()
    print(f"Ray at {cluster.address}, dashboard {cluster.dashboard}" if cluster else "not running")
    if cluster is None:
        sys.exit(1)


def upload(run_directory: Path) -> None:
    """Send to MLflow what an outage kept in a run's spool.

    Args:
        run_directory: folder of the run, with its run.json.
    """
    from cluster.tracking import Uploader, UploadError

    if not (run_directory / "run.json").exists():
        raise FileNotFoundError(f"{run_directory} holds no run.json: give a run's own folder")
    try:
        num_sent = Uploader(run_directory).drain(wait_seconds=10.0)
    except UploadError as error:
        raise OSError(f"MLflow did not take all of {run_directory / 'spool'}, which keeps the rest: {error}") from error
    if num_sent is None:
        raise OSError(f"another process is sending {run_directory / 'spool'} to MLflow: wait for it, then try again")
    print(f"sent {num_sent} events")


def demo(subject: Literal["digits", "faces"]) -> None:
    """Train, evaluate and report on images that need no download, in a few minutes on 2 cores.

    Args:
        subject: digits (scikit-learn's handwritten digits) or faces (drawn by a program).
    """
    from cluster.demo import run_demo

    run_demo(subject)


def submit(arguments: list[str]) -> int:
    """Run `python trainer/main.py ARGS` as a Ray job on this cluster: python -m cluster submit -- ARGS."""
    from cluster.submit import Jobs

    cluster = local.find()
    if cluster is None:
        raise FileNotFoundError("no cluster is running here: start one with python -m cluster up")
    jobs = Jobs(cluster.dashboard)
    job = jobs.submit(shlex.join(["python", "trainer/main.py", *arguments]))
    return 0 if jobs.follow(job) else 1


_SUBMIT_HELP = """usage: python -m cluster submit -- ARGS

Run `python trainer/main.py ARGS` as a Ray job on the cluster that `python -m cluster up` started, and follow its log.
Ctrl-C stops the job. Paths in ARGS must be absolute: a job runs in a copy of the code."""


def main(arguments: list[str]) -> int:
    """Exit status of the command; 2 for a user's error."""
    try:
        if arguments[:1] == ["submit"] and "--" in arguments[1:2]:
            return submit(arguments[2:])
        if arguments[:1] == ["submit"]:
            print(_SUBMIT_HELP)
            return 0 if set(arguments) & {"-h", "--help"} else USER_ERROR
        commands: dict[str, Command] = {
            "up": up,
            "down": down,
            "status": status,
            "submit": submit,
            "upload": upload,
            "demo": demo,
        }
        return run_command(commands, arguments, "python -m cluster", "Where things run: a local cluster, jobs, MLflow.")
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
