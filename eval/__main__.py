"""The door of evaluation: quality numbers for checkpoints, beside the training or after it."""

import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.command_line import Command, run_command
from eval.metrics.fetch import INCEPTION_URL, fetch
from eval.protocol import parse_protocol
from eval.settings import EvaluationSettings, PoolSettings

if TYPE_CHECKING:
    from eval.backlog import Job
    from eval.sampling.evaluation import RunBlocks

STOPPED = 130
"""Exit code of an evaluation that was told to stop, as of a command that Ctrl-C ended."""
DEFAULT_PROTOCOL = "fd_efficientnet_lite0_5k"
_DEFAULT_PROTOCOLS, _DEFAULT_ALIASES = [DEFAULT_PROTOCOL], ["best"]
_DEFAULTS, _NO_POOL = EvaluationSettings(), PoolSettings()


def run(
    run_directory: Path,
    protocol: str = DEFAULT_PROTOCOL,
    checkpoint: int | None = None,
    settings: EvaluationSettings = _DEFAULTS,
    pool: PoolSettings = _NO_POOL,
) -> int:
    """Evaluate one checkpoint of a run and print its number.

    Args:
        run_directory: folder of the run, with its run.json
        protocol: what is measured, for example fid_clean_50k or fd_efficientnet_lite0_512_ddim25
        checkpoint: step of the checkpoint; the newest if not given
    """
    from eval.results import DONE
    from eval.service.runner import Runner
    from eval.service.service import describe_result

    settings.torch_device()
    job = _choose_job(run_directory, protocol, checkpoint)
    stop = _stop_on_signals()
    result = Runner(settings, _run_blocks(pool), stop_requested=stop.is_set).run(job)
    if result is None and stop.is_set():
        print("stopped; finished blocks are kept, and the same command goes on from there", file=sys.stderr)
        return STOPPED
    if result is None:
        raise ValueError(f"step {job.step} is being evaluated by another process; wait for it or stop it")
    print(describe_result(job, result))
    print(job.result_path)
    return 0 if result["status"] == DONE else 1


def serve(
    storage: Path,
    run: str | None = None,
    protocol: list[str] = _DEFAULT_PROTOCOLS,
    every_steps: int = 1,
    order: Literal["newest", "oldest"] = "newest",
    once: bool = False,
    until_finished: bool = False,
    poll_seconds: float = 2.0,
    schedule: str | None = None,
    port: int | None = None,
    settings: EvaluationSettings = _DEFAULTS,
    pool: PoolSettings = _NO_POOL,
) -> int:
    """Evaluate the checkpoints of every run below a storage folder, as they come.

    Args:
        storage: folder that holds the runs
        run: name of the one run to look after; every run of the folder if not given
        protocol: what is measured; give the option again for each further protocol
        every_steps: evaluate checkpoints whose step is a multiple of this, and each run's last
        order: newest checkpoint first, or oldest
        once: evaluate what is there and end (for external schedulers); exit code 1 if something gave no number
        until_finished: end when every run has finished and nothing is left to evaluate
        poll_seconds: pause between two looks at the folder
        schedule: cron expression; at its times each run's newest checkpoint is evaluated and reports are written
        port: show a web page at this port of the loopback address, by Ray Serve
    """
    from eval.backlog import Selection
    from eval.service.runner import Runner
    from eval.service.schedule import ticking
    from eval.service.service import Service

    _check_serving(storage, once, poll_seconds, schedule, port)
    settings.torch_device()
    protocols = [parse_protocol(name) for name in protocol]
    selection = Selection(every_steps, order=order)
    _log_to_stdout()
    stop = _stop_on_signals()
    runner = Runner(settings, _run_blocks(pool), stop_requested=stop.is_set)
    service = Service(storage.resolve(), protocols, selection, runner, run, poll_seconds, stop)
    with contextlib.ExitStack() as stack:
        if schedule is not None:
            service.scheduled = stack.enter_context(ticking(schedule))
        if port is not None:
            from eval.web.serve import serving

            print(stack.enter_context(serving(service.storage, protocols, selection, port)), flush=True)
        stack.callback(service.heartbeat.remove)
        if once:
            service.run_once()
            return 1 if service.num_without_number else 0
        service.run(until_finished)
    return 0


def _check_serving(storage: Path, once: bool, poll_seconds: float, schedule: str | None, port: int | None) -> None:
    """Raises ValueError or FileNotFoundError for what would fail later. A folder still to come is no error: either of
    training and evaluation may start first."""
    if schedule is not None:
        from eval.service.schedule import cron_trigger

        cron_trigger(schedule)
    if poll_seconds <= 0:
        raise ValueError(f"poll_seconds={poll_seconds:g}: more than 0 is needed")
    if once and not storage.is_dir():
        raise FileNotFoundError(f"{storage} does not exist; give the folder that holds the runs")
    if port is not None:
        from eval.web.serve import check_port

        check_port(port)


def neighbours(
    run_directory: Path,
    protocol: str = DEFAULT_PROTOCOL,
    checkpoint: int | None = None,
    settings: EvaluationSettings = _DEFAULTS,
) -> None:
    """Find the training images nearest to a checkpoint's first samples (does it remember?), for the next report.

    Args:
        run_directory: folder of the run, with its run.json
        protocol: how to sample, and by which features to compare; give the one of an evaluation that was made
        checkpoint: step of the checkpoint; the newest if not given
    """
    from eval.errors import BlockedError
    from eval.service.neighbours import find_neighbours

    job = _choose_job(run_directory, protocol, checkpoint)
    try:
        found = find_neighbours(job, settings)
    except BlockedError as error:
        raise ValueError(str(error)) from error
    nearest = sorted(row[0] for row in found["distances"])
    print(
        f"{job.run_directory.name} step {job.step}: nearest training images at {nearest[0]:.2f} to {nearest[-1]:.2f};"
    )
    print(f"a training image is typically {found['typical_distance']:.2f} from its nearest other")


def paper(run_directory: Path) -> None:
    """Print the paper's numbers beside this run's, with the differences in protocol.

    Args:
        run_directory: folder of the run, with its run.json
    """
    from eval.reports.paper import paper_table

    _check_run(run_directory)
    print(paper_table(run_directory.resolve()))


def register(
    run_directory: Path, protocol: str = DEFAULT_PROTOCOL, name: str = "rayddpm", alias: list[str] = _DEFAULT_ALIASES
) -> None:
    """Register the run's best checkpoint under a protocol in the MLflow model registry.

    Args:
        run_directory: folder of the run, with its run.json
        protocol: by which numbers the best is chosen
        name: registered model to which a version is added
        alias: alias that points to it from now on; give the option again for each further one
    """
    from common.files import read_json
    from eval.registry import best_result
    from eval.registry import register as register_result

    _check_run(run_directory)
    best = best_result(run_directory.resolve(), protocol)
    uri = register_result(run_directory.resolve(), best, name, alias)
    print(f"{uri} is step {best['step']}, {best['protocol']['name']} = {best['value']:.4g}")
    registry = read_json(run_directory / "run.json")["tracking_uri"]
    print(f"python -m models sample models:/{name}@{alias[0]} --tracking-uri {registry}")


def fetch_weights(folder: Path | None = None, url: str = INCEPTION_URL) -> None:
    """Download the published Inception network (96 MB), checked by its sha256; a broken download goes on.

    Args:
        folder: where to keep it; $RAYDDPM_WEIGHTS or the user's cache if not given
        url: where to get it
    """
    from eval.metrics.weights import INCEPTION_FILE, weights_folder

    path = weights_folder(folder) / INCEPTION_FILE
    print(f"fetched {path}" if fetch(path, url, progress=_show_progress) else f"{path} is there already")


def import_reference(file: Path, storage: Path, num_images: int, protocol: str = "fid_clean_50k") -> None:
    """Keep published reference statistics (clean-fid npz) for the runs of a storage folder; print their protocol.

    Args:
        file: the npz with mu and sigma
        storage: folder that holds the runs
        num_images: how many images the statistics were made of
        protocol: the Fréchet distance they belong to
    """
    from eval.metrics.reference import ReferenceCache, reference_folder

    if num_images < 2:
        raise ValueError(f"num_images={num_images}: statistics are made of at least 2 images")
    print(ReferenceCache(reference_folder(storage)).import_npz(file, parse_protocol(protocol), num_images).name)


def report(run_directories: list[Path], output: Path = Path("report.html")) -> None:
    """Write a self-contained HTML report of one run or a comparison of several, and its data as JSON beside it.

    Args:
        run_directories: folders of the runs
        output: the HTML file; the JSON gets the same name with .json
    """
    from eval.reports.report import write_report

    if output.suffix == ".json":
        raise ValueError(f"output={output}: name the HTML file; its data are written beside it with .json")
    for directory in run_directories:
        _check_run(directory)
    write_report([directory.resolve() for directory in run_directories], output)
    print(output)


def _run_blocks(pool: PoolSettings) -> "RunBlocks":
    from eval.sampling.evaluation import run_here

    if pool.num_actors == 0:
        return run_here
    from eval.sampling.ray_pool import RayPool

    return RayPool(pool)


def _choose_job(run_directory: Path, protocol: str, step: int | None) -> "Job":
    """The newest checkpoint, or the one at `step`, under a protocol."""
    from eval.backlog import Selection, jobs_of_run

    _check_run(run_directory)
    jobs = jobs_of_run(run_directory.resolve(), [parse_protocol(protocol)], Selection())
    wanted = [job for job in jobs if step in (None, job.step)]
    if not wanted:
        known = ", ".join(str(step) for step in sorted({job.step for job in jobs})) or "none"
        which = "no complete checkpoint" if step is None else f"no complete checkpoint at step {step}"
        raise FileNotFoundError(f"{run_directory} has {which}; there are: {known}")
    return wanted[0]


def _check_run(run_directory: Path) -> None:
    if not (run_directory / "run.json").is_file():
        raise FileNotFoundError(f"{run_directory} holds no run.json; give the folder of a run")


def _log_to_stdout() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    for name in ("mlflow", "apscheduler", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set: the evaluation in progress ends at its next block and can be resumed."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _show_progress(num_bytes: int, total: int | None) -> None:
    share = f" of {total / 1e6:.0f}" if total else ""
    print(f"\r{num_bytes / 1e6:.0f}{share} MB", end="\n" if num_bytes == total else "", file=sys.stderr, flush=True)


COMMANDS: dict[str, Command] = {
    "run": run,
    "serve": serve,
    "report": report,
    "neighbours": neighbours,
    "paper": paper,
    "register": register,
    "fetch-weights": fetch_weights,
    "import-reference": import_reference,
}


def main(arguments: list[str]) -> int:
    """Exit code: 0 done, 1 an evaluation did not end in a number, 2 a user's error."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return run_command(COMMANDS, arguments, "python -m eval", __doc__ or "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
