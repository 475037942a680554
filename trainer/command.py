"""The command line: preset, TOML file and overrides make a config; the run is then planned, launched and closed."""

import difflib
import json
import logging
import os
import re
import sys
import uuid
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser

from cluster.fault import Faults, requested
from cluster.launch import LaunchError, Resources, in_torchrun, launch_local
from cluster.lease import Lease, LostLeaseError
from cluster.progress import ProgressBar
from cluster.ray_train import launch_ray
from cluster.tracking import BackgroundUploader
from trainer.config import Config, WorkersConfig, to_dict
from trainer.plan import Plan, plan, summary
from trainer.presets import PRESETS
from trainer.run import close_run, is_finished, newest_step, open_run, run_lease
from trainer.stop import request_checkpoint, signals_stop, stop_path
from trainer.worker import train_worker

_USER_ERROR, _FAILED, _INTERRUPTED = 2, 1, 130
_log = logging.getLogger(__name__)
_DESCRIPTION = """Train a DDPM. Start with a preset, change any field with --section.field VALUE.
The same command again resumes the run at its newest checkpoint."""


class Options(NamedTuple):
    preset: str
    launcher: Literal["ray", "local"]
    dry_run: bool
    force_changes: bool
    config: Config


def parse(arguments: list[str]) -> Options:
    """Preset < TOML file < --section.field. Raises ValueError with one line for anything that is not understood."""
    try:
        preset = _parser("demo").parse_args(arguments).preset
        parser = _parser(preset)
        parsed = parser.parse_args(arguments)
        sections = parser.instantiate(parsed)
    except ArgumentError as error:
        raise ValueError(_one_line(str(error))) from error
    config = Config(**{name: sections[name] for name in Config.__dataclass_fields__})
    return Options(preset, parsed.launcher, parsed.dry_run, parsed.force_changes, config)


def main(arguments: list[str]) -> int:
    """Exit status: 0 trained (or nothing left to train), 1 workers failed, 2 the user's error, 130 interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        options = parse(arguments)
        if options.dry_run:
            print(json.dumps(summary(options.config), indent=2))
            return 0
        planned = plan(options.config, options.preset)
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
        print(f"error: {_one_line(str(error))}", file=sys.stderr)
        return _USER_ERROR
    print(f"finished already at step {planned.config.train.num_steps}; raise --train.num_steps to train on")
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


def _parser(preset: str) -> ArgumentParser:
    """A parser whose defaults are the preset's values."""
    parser = ArgumentParser(
        prog="python trainer/main.py", description=_DESCRIPTION, exit_on_error=False, parser_mode="toml"
    )
    parser.add_argument("--preset", type=Literal[tuple(PRESETS)], default=preset, help="the values to start from")
    parser.add_argument("--config", action="config", help="TOML file with [section] tables; over the preset")
    parser.add_argument(
        "--launcher", type=Literal["ray", "local"], default="ray", help="local: plain processes on this machine"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resulting run as JSON and exit")
    parser.add_argument(
        "--force-changes", action="store_true", help="go on with a run although what it trains was changed; recorded"
    )
    values = to_dict(PRESETS[preset]())
    for name, section in Config.__dataclass_fields__.items():
        parser.add_class_arguments(section.type, name)
        parser.set_defaults({f"{name}.{key}": value for key, value in values[name].items()})
    return parser


def _one_line(message: str) -> str:
    """The message without the parser's own wrapping, and with the nearest known option for a mistyped one."""
    message = re.sub(r"\s+", " ", message).strip()
    message = re.sub(r"a <class .(\w+).>|a typing\.Literal", lambda found: found[1] or "one of ", message)
    if message.startswith('Parser key "config"'):
        return f"--config: not a readable TOML file ({message.partition(': ')[2]})"
    message = re.sub(r"^Group '(\w+)' does not accept option '(\w+)'", r"unrecognized key: \1.\2", message)
    unknown = re.match(r"unrecognized (?:arguments: --|key: )([\w.\-]+)", message)
    if unknown:
        known = [f"{s}.{f}" for s, fields in to_dict(PRESETS["demo"]()).items() for f in fields]
        near = difflib.get_close_matches(unknown[1], known, n=1)
        message += f"; did you mean --{near[0]}?" if near else "; --help lists what there is"
    return message
