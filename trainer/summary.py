"""What the command says of a run before its first step and after its last: what it is, and what to do next."""

import os
import shlex
import sys

from cluster.launch import in_ray_job
from cluster.run_directory import CHECKPOINTS
from cluster.storage import complete_directories
from cluster.tracking.view import where_to_look
from common.code import ROOT
from data_pipeline.storage.address import is_remote, shown_address
from trainer.config.config import Launcher
from trainer.config.plan import Plan, num_parameters
from trainer.run import newest_step

_INDENT = 12


def at_the_start(plan: Plan, launcher: Launcher) -> str:
    """Device, network, data, length, and where curves are seen, one per line."""
    config, manifest = plan.config, plan.manifest
    workers, path = config.workers, config.data.path
    device = "GPU" if workers.use_gpu else f"{workers.cpus_per_worker}-core CPU"
    fewest = f"{workers.min_workers} to " if workers.min_workers else ""
    shape = f"{manifest.image_size} x {manifest.image_size} x {manifest.image_channels}"
    step = newest_step(plan.directory)
    rows = {
        "workers": f"{fewest}{workers.num_workers}, each on one {device}, {workers.strategy}, launched by {launcher}",
        "network": f"{num_parameters(config):,} parameters, {config.train.precision}",
        "data": f"{manifest.num_samples:,} images of {shape} in {shown_address(path) if is_remote(path) else path}",
        "steps": f"{config.train.num_steps:,} of {config.train.global_batch_size} images"
        + (f", from the checkpoint of step {step:,}" if step else ""),
        "curves": _mlflow(plan),
    }
    return _table(rows)


def at_the_end(plan: Plan) -> str:
    """What to do with a trained run, as commands that can be pasted."""
    directory = str(plan.directory)
    rows = {
        "sample": _command("models", "sample", directory, "--output", os.path.join(directory, "samples")),
        "evaluate": _command("eval", "run", directory),
        "report": _command("eval", "report", directory, "--output", os.path.join(directory, "report.html")),
        "curves": _mlflow(plan),
    }
    newest = complete_directories(plan.directory / CHECKPOINTS)[-1]
    return f"finished at step {plan.config.train.num_steps}: {newest}\n{_table(rows)}"


def _table(rows: dict[str, str]) -> str:
    return "\n".join(f"  {name:<{_INDENT - 3}} {text}" for name, text in rows.items())


def _command(package: str, *arguments: str) -> str:
    """A command of ours that works where this one was typed. A job's copy of the code is gone when it ends."""
    python = "python" if in_ray_job() else sys.executable
    there = "" if in_ray_job() or os.getcwd() == str(ROOT) else f"cd {shlex.quote(str(ROOT))} && "
    return there + shlex.join([python, "-m", package, *arguments])


def _mlflow(plan: Plan) -> str:
    """How to see the curves: the command that shows a file, and the pages, of this run and of all beside each other."""
    program = "mlflow" if in_ray_job() else os.path.join(os.path.dirname(sys.executable), "mlflow")
    return f"\n{' ' * _INDENT}".join(where_to_look(plan.directory, program))
