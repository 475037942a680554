"""The command: a config is planned; the run is opened, launched, uploaded and closed."""

import json
import logging
import os
import sys
import threading
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path

from cluster.fault import Faults, requested
from cluster.launch import LaunchError, Resources, in_torchrun, launch_local
from cluster.lease import Lease, LostLeaseError
from cluster.progress import ProgressBar, progress_path, write_progress
from cluster.ray_train import launch_ray
from cluster.run_directory import FINISHED, newest_step
from cluster.tracking.background import BackgroundUploader
from cluster.tracking.uploader import Uploader
from common.files import read_json
from common.interrupt import INTERRUPTED, Interrupted, sigterm_interrupts
from common.logs import say, start_logging, tell
from common.progress import log_format
from trainer.config.config import Launcher, WorkersConfig
from trainer.config.cost import check_cpu_hours
from trainer.config.options import Options, parse
from trainer.config.plan import Plan, follow_data, on_other_machines, plan, summary
from trainer.hooks.stop import request_checkpoint, signals_stop, stop_path, stop_signalled
from trainer.run import close_run, is_finished, open_run, run_lease
from trainer.summary import at_the_end, at_the_start
from trainer.worker import train_worker

_USER_ERROR, _FAILED = 2, 1
_LAST_WORDS_SECONDS = 1.0
_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Exit status: 0 trained (or nothing left to train), 1 workers failed, 2 the user's error, 130 interrupted."""
    try:
        start_logging(sys.stderr, log_format(sys.stderr))
        with sigterm_interrupts():
            return _train(arguments)
    except KeyboardInterrupt as interrupted:
        say(str(interrupted) or "interrupted before training began; the same command starts again", logging.WARNING)
        return INTERRUPTED
    except LostLeaseError as error:
        say(f"error: {error}: this one writes nothing more")
        return _FAILED
    except (ValueError, OSError) as error:
        say(f"error: {' '.join(str(error).split())}")
        return _USER_ERROR


def _train(arguments: list[str]) -> int:
    """Raises Interrupted, and ValueError and OSError for what a user can mend."""
    options = parse(arguments)
    config = follow_data(options.config, options.given)
    if options.dry_run:
        print(json.dumps(summary(config), indent=2))
        return 0
    planned = plan(config, options.preset, options.launcher)
    tell(run=planned.config.run.name)
    _check_length(planned, options)
    if options.launcher == "local" and in_torchrun() and int(os.environ["RANK"]) > 0:
        return _follow(planned)
    with run_lease(planned.directory) as lease:
        unfinished = open_run(planned, lease, options.force_changes)
        print(f"run {planned.config.run.name} in {planned.directory}", flush=True)
        if unfinished:
            print(at_the_start(planned, options.launcher), flush=True)
            return _run(planned, options.launcher, replace(lease))
    reached = read_json(planned.directory / FINISHED)["step"]
    print(f"finished already at step {reached}; raise --train.num_steps above that to train on")
    return 0


def _check_length(planned: Plan, options: Options) -> None:
    """Weeks on this machine's CPU are what few users mean."""
    workers, left = planned.config.workers, planned.config.train.num_steps - newest_step(planned.directory)
    if not (workers.use_gpu or options.allow_long_cpu_run or on_other_machines(options.launcher)):
        check_cpu_hours(planned.config, left)


def _follow(planned: Plan) -> int:
    """A process of torchrun other than rank 0, which opens the run, uploads and closes it for all."""
    if is_finished(planned):
        return 0
    with signals_stop(planned.directory, lambda: "ended at once"):
        launch_local(train_worker, planned.directory, _resources(planned.config.workers))
    return INTERRUPTED if stop_path(planned.directory).exists() else 0


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


def _run(planned: Plan, launcher: Launcher, lease: Lease) -> int:
    """lease: a copy that can be sent to workers, of the one that this process holds."""
    directory, status = planned.directory, "FAILED"
    for path in (stop_path(directory), progress_path(directory)):
        path.unlink(missing_ok=True)
    with signals_stop(directory, partial(_last_words, planned, lease), under_ray=launcher == "ray"):
        try:
            with BackgroundUploader(directory, faults=Faults(requested(), directory)):
                try:
                    with ProgressBar(directory):
                        _launch(planned, launcher, lease)
                    finished = newest_step(directory) >= planned.config.train.num_steps
                    status = "FINISHED" if finished else "KILLED"
                except LaunchError as error:
                    _log.error("%s", error.details)
                    say(f"error: the workers failed: {error}")
                except KeyboardInterrupt:
                    status = "KILLED"
                    raise
                finally:
                    write_progress(directory, "sending metrics", newest_step(directory))
                    _close(planned, lease, status)
        except KeyboardInterrupt as error:
            raise Interrupted(_kept(directory, status)) from error
    if status == "KILLED":
        raise Interrupted(_kept(directory, status))
    if status == "FINISHED":
        print(at_the_end(planned), flush=True)
    return 0 if status == "FINISHED" else _FAILED


def _launch(planned: Plan, launcher: Launcher, lease: Lease) -> None:
    """Raises LaunchError, and KeyboardInterrupt if a signal came before a step was done."""
    directory, resources = planned.directory, _resources(planned.config.workers)
    function = partial(train_worker, lease=lease)
    before_restart = partial(_before_restart, directory, lease)
    if launcher == "ray":
        attempt = f"attempt-{uuid.uuid4().hex[:8]}"
        launch_ray(function, directory, attempt, resources, _before_resize, before_restart)
    else:
        launch_local(function, directory, resources, before_restart)


def _before_restart(directory: Path, lease: Lease) -> None:
    """Under Ray in a process of Ray's own. The workers to come have done nothing that a stop could keep."""
    if stop_signalled():
        raise KeyboardInterrupt  # they failed while they stopped
    write_progress(directory, "starting the workers again", newest_step(directory))
    lease.check()


def _before_resize(directory: Path) -> None:
    request_checkpoint(directory)
    write_progress(directory, "changing the number of workers", newest_step(directory))


def _kept(directory: Path, status: str) -> str:
    """The one line of an interrupted command."""
    if status == "FINISHED":
        return f"the run is finished; what MLflow does not have yet: python -m cluster upload {directory}"
    if step := newest_step(directory):
        return f"stopped with a checkpoint of step {step}; the same command goes on from it"
    return "stopped before there was a checkpoint; the same command starts the run again"


def _last_words(planned: Plan, lease: Lease) -> str:
    """What a second signal leaves time for, in another thread: MLflow says KILLED, and the run is free for others."""

    def say() -> None:
        _close(planned, lease, "KILLED")
        lease.release()
        lines.append(_kept(planned.directory, "KILLED").replace("stopped", "ended at once", 1))
        Uploader(planned.directory).drain(wait_seconds=0.5)

    lines: list[str] = []
    speaker = threading.Thread(target=say, name="last-words", daemon=True)
    speaker.start()
    speaker.join(_LAST_WORDS_SECONDS)
    return lines[0] if lines else "ended at once; the same command goes on from the newest checkpoint"


def _close(planned: Plan, lease: Lease, status: str) -> None:
    try:
        close_run(planned, lease, status)
    except OSError as error:
        _log.warning("the run's end could not be noted: %s", error)  # a full disk; what ended it says more
