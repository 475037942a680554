"""The commands of `python -m cluster`: a cluster on this machine, jobs on any, a look at it, and a run's metrics."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cluster import local
from cluster.run_directory import RUN
from common.command_line import CommandLine, run
from common.redaction import redacted

_PROGRAMS = {
    "train": ("python", "trainer/main.py"),
    "data": ("python", "-m", "data_pipeline"),
    "eval": ("python", "-m", "eval"),
}


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


def status(address: str = "") -> int:
    """Say whether the cluster that `up` starts is running, where, and its jobs. Exit code 1 if it is not.

    Args:
        address: dashboard of another Ray cluster, http://HOST:8265; that of `up` if not given.
    """
    cluster = None if address else local.find()
    if not address and cluster is None:
        print("not running")
        return 1
    if cluster is not None:
        print(f"Ray at {cluster.address}, dashboard {cluster.dashboard}")
    from cluster.submit import Jobs

    for job, state, command in Jobs(cluster.dashboard if cluster else address).all():
        print(f"{job}  {state:9}  {redacted(command)}")
    return 0


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


def tensorboard(run_directory: Path, log_folder: Path, follow: bool = False) -> None:
    """Write a run's metrics for `tensorboard --logdir LOG_FOLDER`, beside what goes to MLflow.

    Args:
        run_directory: folder of the run, with its run.json
        log_folder: where the event files go; those of an earlier time are written anew
        follow: go on, every other second, until Ctrl-C
    """
    from cluster.tracking.board import BoardWriter

    writer = BoardWriter(run_directory, log_folder / run_directory.resolve().name)
    try:
        print(f"wrote {writer.drain()} points; see them: tensorboard --logdir {log_folder}", flush=True)
        while follow:
            time.sleep(2.0)
            writer.drain()
    finally:
        writer.close()


def demo(name: Literal["digits", "faces"], output: Path = Path()) -> None:
    """Train, evaluate and report on images that need no download, in a few minutes on 2 cores; it says how long first.

    Args:
        name: digits (scikit-learn's handwritten digits) or faces (drawn by a program).
        output: folder in which data/, runs/ and reports/ are made
    """
    from cluster.demo import run_demo

    run_demo(name, output)


def submit(
    *arguments: str,
    program: Literal["train", "data", "eval"] = "train",
    address: str = "",
    detach: bool = False,
    stop_seconds: int = 60,
) -> int:
    """Run a training, packing or evaluation as a Ray job and follow its log: submit [OPTIONS] -- ARGS.

    ARGS are those of the program; its --help shows them. A whole command, `python trainer/main.py ...`, may stand there
    as well, as for `ray job submit`. Ctrl-C stops the job. Paths in ARGS must be absolute: a job runs in a copy of the
    code, which is all that is sent.

    Args:
        program: train (python trainer/main.py), data (python -m data_pipeline) or eval (python -m eval)
        address: dashboard of a Ray cluster, http://HOST:8265; else RAY_API_SERVER_ADDRESS, or what `up` started
        detach: leave the job to itself; `logs` and `stop` find it again
        stop_seconds: what the job gets to end with a checkpoint when it is stopped, before it is killed
    """
    from cluster.submit import connect

    jobs = connect(address)
    whole = arguments if arguments[:1] == ("python",) else (*_PROGRAMS[program], *arguments)
    job = jobs.submit(shlex.join(whole), stop_seconds)
    print(f"job {job}, with {jobs.code_bytes / 1e6:.1f} MB of code and nothing else", flush=True)
    if detach:
        print(f"its log: python -m cluster logs {job}; to end it: python -m cluster stop {job}")
        return 0
    return 0 if jobs.follow(job) else 1


def logs(job: str, address: str = "", follow: bool = True) -> int:
    """Print a job's log and follow it until the job ends; exit code 1 if it failed. Ctrl-C leaves the job to itself.

    Args:
        job: its id, as `submit` and `status` name it
        address: dashboard of a Ray cluster; as for submit
        follow: go on until the job ends
    """
    from cluster.submit import connect

    jobs = connect(address)
    jobs.check(job)
    if follow:
        return 0 if jobs.follow(job, stops=False) else 1
    print(jobs.logs(job), end="")
    return 0


def stop(job: str, address: str = "") -> int:
    """End a job in good order: a training writes a checkpoint first. Waits for it, and says what the job said last.

    Args:
        job: its id, as `submit` and `status` name it
        address: dashboard of a Ray cluster; as for submit
    """
    from cluster.submit import connect

    jobs = connect(address)
    jobs.check(job)
    if jobs.ended(job):
        print(f"job {job} had ended already")
        return 0
    print(f"stopping job {job}; it has {jobs.stop_seconds(job)} s to write its checkpoint", flush=True)
    jobs.stop_and_wait(job)
    last = (jobs.logs(job).strip().splitlines() or ["it wrote nothing"])[-1]
    print(f"job {job} {'has ended' if jobs.ended(job) else 'still runs'}: {last}")
    return 0 if jobs.ended(job) else 1


def doctor(
    storage: str = "",
    data: str = "",
    tracking_uri: str = "",
    gpus: bool = False,
    address: str = "",
    inside: bool = False,
) -> int:
    """Check a Ray cluster, node by node, a line for each check: good, or what to do. Exit code 1 if something is not.

    It runs as a job of the cluster. Where no cluster is, this machine alone is looked at.

    Args:
        storage: the folder of --run.storage, which every node must share
        data: what --data.path will be: a folder or a web address
        tracking_uri: MLflow's server, as for --run.tracking_uri
        gpus: nodes without a GPU are a fault
        address: dashboard of a Ray cluster; as for submit
        inside: this process is on a node of the cluster, and joins it by RAY_ADDRESS
    """
    from cluster.doctor.examine import examine_cluster, examine_here
    from cluster.doctor.job import examine_by_job
    from cluster.doctor.node import Asked
    from cluster.submit import connect, dashboard_of

    asked = Asked(storage, data, tracking_uri, gpus)
    if inside:
        lines = [str(check) for check in examine_cluster(asked)]
    elif dashboard := dashboard_of(address):
        lines = examine_by_job(connect(dashboard), asked)
    else:
        lines = [str(check) for check in examine_here(asked)]
    print("\n".join(lines))
    return 1 if any(line.startswith("NO") for line in lines) else 0


COMMAND_LINE = CommandLine(
    prog="python -m cluster",
    description="Where things run: a local cluster, jobs on any, and what a run says of itself.",
    commands={
        **{"up": up, "down": down, "status": status, "submit": submit, "logs": logs, "stop": stop},
        **{"doctor": doctor, "upload": upload, "tensorboard": tensorboard, "demo": demo},
    },
    examples=("demo digits", "up", "submit -- --preset cifar10 --data.path /data/cifar10 --run.storage /runs"),
    interrupted={
        "demo": "stopped; what is done is kept, and the same command goes on from there",
        "tensorboard": "stopped; the event files stay",
        "upload": "interrupted; what was not sent is kept, and the same command goes on from there",
    },
    errors=(RuntimeError,),
)


def main(arguments: Sequence[str], prog: str | None = None) -> int:
    """Exit code: 0 done, 1 it is not running, or the job failed, 2 a user's error, 130 interrupted."""
    return run(COMMAND_LINE, arguments, prog)
