"""`python -m eval serve`: the evaluator that looks after a storage folder."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.interrupt import INTERRUPTED
from common.logs import start_logging
from eval.cli.jobs import DEFAULT_PROTOCOL, run_blocks, stop_on_signals
from eval.settings import EvaluationSettings, PoolSettings

if TYPE_CHECKING:
    from eval.service.service import Service

_DEFAULT_PROTOCOLS = [DEFAULT_PROTOCOL]
_DEFAULTS, _NO_POOL = EvaluationSettings(), PoolSettings()
STOPPED = "stopped; finished evaluations and blocks are kept, and the same command goes on from there"


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
        once: evaluate what is there and end (for external schedulers); exit code 1 if something has no number
        until_finished: end when every run has finished and nothing is left to evaluate
        poll_seconds: pause between two looks at the folder
        schedule: cron expression; at its times each run's newest checkpoint is evaluated and reports are written
        port: show a web page at this port of the loopback address, by Ray Serve
    """
    from eval.backlog import Selection
    from eval.protocol import parse_protocol
    from eval.service.runner import Runner
    from eval.service.service import Service

    _check_serving(storage, once, poll_seconds, schedule, port)
    settings.torch_device()
    protocols = [parse_protocol(name) for name in protocol]
    selection = Selection(every_steps, order=order)
    _log_to_stdout()
    stop = stop_on_signals()
    runner = Runner(settings, run_blocks(pool), stop_requested=stop.is_set)
    service = Service(storage.resolve(), protocols, selection, runner, run, poll_seconds, stop)
    with _beside(service, schedule, port):
        if once:
            service.run_once()
        else:
            service.run(until_finished)
    if stop.is_set():
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    return 1 if once and _without_number(service) else 0


@contextlib.contextmanager
def _beside(service: "Service", schedule: str | None, port: int | None) -> Iterator[None]:
    """The clock and the web page, if they are asked for, while the service works."""
    with contextlib.ExitStack() as stack:
        if schedule is not None:
            from eval.service.schedule import ticking

            service.scheduled = stack.enter_context(ticking(schedule))
        if port is not None:
            from eval.web.serve import serving

            page = serving(service.storage, service.protocols, service.selection, port)
            print(stack.enter_context(page), flush=True)
        stack.callback(service.heartbeat.remove)
        yield


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


def _without_number(service: "Service") -> list[Path]:
    """Files of the evaluations that could not be made, now or in an earlier start whose retry is still to come."""
    from eval.results import BLOCKED, FAILED, read_result

    paths = [job.result_path for job in service.jobs()]
    return [path for path in paths if (read_result(path) or {}).get("status") in (BLOCKED, FAILED)]


def _log_to_stdout() -> None:
    start_logging(sys.stdout, "%(asctime)s %(message)s", "%H:%M:%S")
    for name in ("mlflow", "apscheduler", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
