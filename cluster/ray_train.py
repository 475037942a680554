"""The launcher under Ray Train: clusters, restarts, elastic numbers of workers, notices of preemption."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cluster.launch import LaunchError, Resources, Worker, WorkerFunction
from cluster.local import LOCAL_SETTINGS, client_environment, in_ray_job
from cluster.progress import write_progress
from cluster.worker_processes import SIGNAL_SECONDS, WorkerError, noting_failure
from common.code import ROOT, ours_first
from common.logs import VARIABLE, as_json, start_logging
from common.process import end_descendants, keep_freed_memory, sessions_of_their_own

_LEAVE_SECONDS = 5.0


def launch_ray(
    function: WorkerFunction,
    run_directory: Path,
    attempt: str,
    resources: Resources,
    before_resize: Callable[[Path], object],
    before_restart: Callable[[], object],
) -> None:
    """Run the workers under Ray Train, on the cluster of RAY_ADDRESS or one started in this process.

    before_resize: called with the run directory while all workers still train, before Ray ends them to go on with
    another number; must not raise. Ray itself would lose what was done since the last checkpoint.
    before_restart: called after a failure, before workers are started again; what it raises ends the launch.

    Ray's own run state goes to a folder of this attempt alone: our checkpoints, not Ray's, say where a run stands, and
    a damaged or half-written Ray state file of an earlier attempt must not stop the next one.
    Raises LaunchError when the workers failed too often, ValueError if a cluster of this process has no room for them.
    """
    per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})}
    write_progress(run_directory, "joining the cluster" if _has_cluster() else "starting Ray")
    _join_cluster(per_worker, resources)
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from cluster.ray_backend import naming_the_cluster, torch_config

    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={
            "function": function,
            "run_directory": str(run_directory),
            "cpus_per_worker": resources.cpus_per_worker,
        },
        scaling_config=ScalingConfig(
            use_gpu=resources.use_gpu, resources_per_worker=per_worker, **_num_workers(resources)
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=str(run_directory / "ray"),
            failure_config=FailureConfig(max_failures=resources.max_failures),
            callbacks=[_watching_controller(partial(before_resize, run_directory), before_restart)],
        ),
        torch_config=torch_config(resources),
    )
    write_progress(run_directory, "waiting for room on the cluster, starting the workers")
    try:
        _in_thread(naming_the_cluster()(trainer.fit))
    except ray.train.TrainingFailedError as error:
        raise _launch_error(error) from error


def _in_thread(fit: Callable[[], object]) -> None:
    """On the main thread Ray would take over SIGINT and abort the workers before their last checkpoint.

    When KeyboardInterrupt is raised here, the process leaves the cluster, which then ends the workers of this job.
    """
    fitting: Future[object] = Future()

    def run() -> None:
        try:
            fitting.set_result(fit())
        except BaseException as error:  # noqa: BLE001 (raised again by the thread that waits)
            fitting.set_exception(error)

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    try:
        while not fitting.done():
            wait([fitting], SIGNAL_SECONDS)
    except KeyboardInterrupt:
        leave_cluster()
        raise
    fitting.result()


def leave_cluster() -> None:
    """Leave the cluster, within seconds: one of this process's own ends with all of its processes."""
    import ray

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # it would tell of the processes that are gone
    # Before its processes are killed: Ray ends a driver whose raylet is gone, silently, with an exit code of its own.
    leaving = threading.Thread(target=ray.shutdown, name="leave-cluster", daemon=True)
    leaving.start()
    leaving.join(_LEAVE_SECONDS)
    end_descendants()


def _launch_error(error: Exception) -> LaunchError:
    """What failed first. A worker that is gone without a word is the cause; else the one whose exception came first."""
    failures = getattr(error, "worker_failures", {})
    if gone := {rank: failure for rank, failure in failures.items() if not isinstance(failure, WorkerError)}:
        rank, failure = min(gone.items())
        return LaunchError(f"worker {rank}: {' '.join(str(failure).split())[:2000]}", str(error))
    if failures:
        first = min(failures.values(), key=lambda failure: failure.unix_seconds)
        return LaunchError(str(first), first.details)
    return LaunchError(str(error).strip().splitlines()[-1], str(error))


def _has_cluster() -> bool:
    return in_ray_job() or "RAY_ADDRESS" in os.environ


def _join_cluster(per_worker: dict[str, float], resources: Resources) -> None:
    if not in_ray_job():
        os.environ.update(_settings(os.environ.get("RAY_ADDRESS", "")))
    import ray

    if not ray.is_initialized():
        # Inside a job the job's own environment applies and already has the code on its path.
        try:
            with _keeping_sigterm(), ours_first(), sessions_of_their_own():
                ray.init(**({} if in_ray_job() else _own_cluster()))
        except Exception as error:  # bare ones too, as when its processes take too long on a busy machine
            raise LaunchError(f"Ray did not start: {' '.join(str(error).split())}", traceback.format_exc()) from error
    if "RAY_ADDRESS" not in os.environ and not in_ray_job():
        _check_room(ray.cluster_resources(), per_worker, resources)


def _check_room(has: dict[str, float], per_worker: dict[str, float], resources: Resources) -> None:
    """A cluster of one machine never grows, and Ray would wait for ever; others may."""
    num_workers = resources.min_workers or resources.num_workers
    for name, wanted in per_worker.items():
        if num_workers * wanted > has.get(name, 0):
            raise ValueError(
                f"{num_workers} workers with {wanted:g} {name} each do not fit on this machine, which has "
                f"{has.get(name, 0):g}: lower workers.num_workers, set workers.min_workers, join a cluster by "
                "RAY_ADDRESS, or use --launcher local"
            )


def _num_workers(resources: Resources) -> dict[str, Any]:
    """Fields of ScalingConfig, some of which its types for checkers, those of Ray's older trainer, do not have."""
    if resources.min_workers is None or resources.min_workers == resources.num_workers:
        return {"num_workers": resources.num_workers}
    return {
        "num_workers": (resources.min_workers, resources.num_workers),
        "elastic_resize_monitor_interval_s": resources.resize_check_seconds,
    }


def _watching_controller(before_resize: Callable[[], object], before_restart: Callable[[], object]) -> Any:
    """Ray's controller calls them when it has decided to resize a group that trains, or what to do after a failure.

    Of Ray's callbacks only those for its developers are called for it.
    """
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller.state import ResizingState

    class WatchingController(ControllerCallback):
        def after_controller_state_update(self, previous_state: object, current_state: object) -> None:
            if isinstance(current_state, ResizingState):
                before_resize()

        def before_controller_execute_failure_decision(self, failure_decision: object) -> None:
            before_restart()

    return WatchingController()


def _settings(address: str) -> dict[str, str]:
    """Variables that Ray reads when it is imported: a cluster on loopback takes the same settings as `cluster up`."""
    if not address:
        return client_environment(create_token=True) | LOCAL_SETTINGS
    return LOCAL_SETTINGS if address.startswith(("127.", "localhost:")) else {}


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """ray.init gives the process a handler of SIGTERM that exits at once, before the last checkpoint."""
    previous = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, previous)


def _own_cluster() -> dict[str, Any]:
    """ray.init arguments outside a job: join the cluster RAY_ADDRESS names, else start one on loopback."""
    variables = {"PYTHONPATH": str(ROOT), VARIABLE: os.environ.get(VARIABLE, "")}
    environment = {"runtime_env": {"env_vars": variables}}
    if "RAY_ADDRESS" in os.environ:
        return environment
    return {**environment, "address": "local", "dashboard_host": "127.0.0.1"}


def _ray_worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    torch.set_num_threads(config["cpus_per_worker"])
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        keep_freed_memory()
    if as_json():
        start_logging(sys.stderr, "")
    worker = Worker(context.get_world_rank(), context.get_world_size(), device, _ray_notified)
    if worker.rank == 0:
        write_progress(Path(config["run_directory"]), "building the network, opening the data")
    with noting_failure(worker.rank):
        config["function"](worker, config["run_directory"])


def _ray_notified() -> bool:
    """Whether a node of this run is being drained. Ray's public question is a barrier over all workers at each call."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
