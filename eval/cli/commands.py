"""The commands of `python -m eval`: quality numbers for checkpoints, beside the training or after it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from common.command_line import CommandLine
from common.command_line import run as run_command_line
from common.interrupt import INTERRUPTED
from eval.cli.jobs import DEFAULT_PROTOCOL, check_run, choose_job, run_blocks, stop_on_signals
from eval.cli.keep import fetch_weights, import_reference, register
from eval.cli.likelihood import likelihood
from eval.cli.serve import STOPPED, serve
from eval.settings import EvaluationSettings, PoolSettings

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
    from cluster.tracking.view import where_to_look
    from eval.results import DONE
    from eval.service.runner import Runner
    from eval.service.service import describe_result

    settings.torch_device()
    job = choose_job(run_directory, protocol, checkpoint)
    stop = stop_on_signals()
    result = Runner(settings, run_blocks(pool), stop_requested=stop.is_set).run(job)
    if result is None and stop.is_set():
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    if result is None:
        raise ValueError(f"step {job.step} is being evaluated by another process; wait for it or stop it")
    print(describe_result(job, result))
    print(job.result_path)
    print("MLflow:", *where_to_look(job.run_directory), sep="\n  ")
    return 0 if result["status"] == DONE else 1


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

    job = choose_job(run_directory, protocol, checkpoint)
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

    check_run(run_directory)
    print(paper_table(run_directory.resolve()))


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
        check_run(directory)
    write_report([directory.resolve() for directory in run_directories], output)
    print(output)


COMMAND_LINE = CommandLine(
    prog="python -m eval",
    description="Quality numbers for checkpoints, beside the training or after it.",
    commands={
        "run": run,
        "serve": serve,
        "report": report,
        "likelihood": likelihood,
        "neighbours": neighbours,
        "paper": paper,
        "register": register,
        "fetch-weights": fetch_weights,
        "import-reference": import_reference,
    },
    examples=(
        "run runs/NAME --protocol fd_efficientnet_lite0_5k",
        'serve runs --every-steps 10000 --schedule "0 6 * * *"',
        "report runs/NAME runs/OTHER --output report.html",
    ),
    interrupted={
        "run": STOPPED,
        "serve": STOPPED,
        "fetch-weights": "interrupted; what came is kept, and the same command goes on from there",
    },
    environment={"MLFLOW_DISABLE_TELEMETRY": "true"},
)


def main(arguments: Sequence[str], prog: str | None = None) -> int:
    """Exit code: 0 done, 1 an evaluation did not end in a number, 2 a user's error, 130 stopped."""
    return run_command_line(COMMAND_LINE, arguments, prog)
