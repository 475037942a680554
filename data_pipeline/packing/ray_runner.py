"""Packing on all nodes of a Ray cluster."""

from collections.abc import Iterator, Sequence

from common.code import ours_first
from data_pipeline.packing.pack import Task, run_task
from data_pipeline.packing.writer import ShardNotes

_MAX_TASKS_IN_FLIGHT = 256


def run_on_ray(tasks: Sequence[Task]) -> Iterator[ShardNotes]:
    """A task runner: each shard is a Ray task of one CPU. Nodes must see source and destination at the same paths.

    Joins the cluster at $RAY_ADDRESS, or starts one on this machine. The shards are the same as without Ray.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        with ours_first():
            ray.init(log_to_driver=False)
    try:
        remote_task = ray.remote(num_cpus=1)(run_task)
        waiting = list(reversed(tasks))
        running: list[ray.ObjectRef] = []
        while waiting or running:
            while waiting and len(running) < _MAX_TASKS_IN_FLIGHT:
                running.append(remote_task.remote(waiting.pop()))
            done, running = ray.wait(running)
            yield from ray.get(done)
    finally:
        if started:
            ray.shutdown()
