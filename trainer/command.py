"""The command: a config is planned; the run is opened, launched, uploaded and closed."""

import json
import logging
import os
import sys
import uuid
from dataclasses import replace
from functools import partial
from typing import Literal

from cluster.background import BackgroundUploader
from cluster.fault import Faults, requested
from cluster.launch import LaunchError, Resources, in_torchrun, launch_local
from cluster.lease import Lease, LostLeaseError
from cluster.progress import ProgressBar
from cluster.ray_train import launch_ray
from cluster.run_directory import newest_step
from common.files import read_json
from trainer.config.config import WorkersConfig
from trainer.config.options import parse
from trainer.config.plan import Plan, plan, summary
from trainer.hooks.stop import request_checkpoint, signals_stop, stop_path
from trainer.run import close_run, is_finished, open_run, run_lease
from trainer.worker import train_worker

_USER_ERROR, _FAILED, _INTERRUPTED = 2, 1, 130
_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Exit status: 0 trained (or nothing left to train), 1 workers failed, 2 the user's error, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        options = parse(arguments)
        if options.dry_run:
            print(json.dumps(summary(options.config), indent=2))
            return 0
        planned = plan(options.config, options.preset, options.launcher)
        if options.launcher == "local" and in_torchrun() and int(os.environ["RANK"]) > 0:
            return _follow(planned)
        with run_lease(planned.directory) as lease:
            unfinished = open_run(planned, lease, options.force_changes)
            print(f"run {planned.config.run.name} in {planned.directory}", flush=True)
            if unfinished:
                return _run(planned, options.launcher, replace(lease))
    except LostLeaseError as error:
        print(f"error: {error}: this one writes nothing more into {planned.directory}", file=sys.stderr)
        return _FAILED
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return _USER_ERROR
    reached = read_json(planned.directory / "FINISHED.json")["step"]
    print(f"finished already at step {reached}; raise --train.num_steps above that to train on")
    return 0


def _follow(planned: Plan) -> int:
    """A process of torchrun other than rank 0, which opens the run, uploads and closes it for all."""
    if is_finished(planned):
        return 0
    with signals_stop(planned.directory):
        launch_local(train_worker, planned.directory, _resources(planned.config.workers))
    return _INTERRUPTED if stop_path(planned.directory).exists() else 0


def _resources(workers: WorkersConfig) -> Resources:
    return Resources(
        workers.num_workers,
        workers.use_gpu,
        workers.cpus_per_worker,
        workers.max_failures,
        workers.collective_timeout_seconds,
        workers.min_workers or None,
        workers.resize_check_seconds,
    )


def _run(planned: Plan, launcher: Literal["ray", "local"], lease: Lease) -> int:
    """lease: a copy that can be sent to workers, of the one that this process holds."""
    resources, function = _resources(planned.config.workers), partial(train_worker, lease=lease)
    status, exit_code = "FAILED", _FAILED
    stop_path(planned.directory).unlink(missing_ok=True)
    with BackgroundUploader(planned.directory, faults=Faults(requested(), planned.directory)):
        try:
            with ProgressBar(planned.directory), signals_stop(planned.directory):
                if launcher == "ray":
                    attempt = f"attempt-{uuid.uuid4().hex[:8]}"
                    launch_ray(function, planned.directory, attempt, resources, request_checkpoint, lease.check)
                else:
                    launch_local(function, planned.directory, resources, lease.check)
            finished = newest_step(planned.directory) >= planned.config.train.num_steps
            status, exit_code = ("FINISHED", 0) if finished else ("KILLED", _INTERRUPTED)
        except LaunchError as error:
            _log.error("%s", error)
            print(f"error: the workers failed: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        finally:
            _close(planned, lease, status)
    if status == "KILLED":
        print("stopped with a checkpoint; the same command goes on from it", flush=True)
    return exit_code


def _close(planned: Plan, lease: Lease, status: str) -> None:
    try:
        close_run(planned, lease, status)
    except OSError as error:
        _log.warning("the run's end could not be noted: %s", error)  # a full disk; what ended it says more
