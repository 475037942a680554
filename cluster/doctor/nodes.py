"""Every node of a Ray cluster: what it says of itself, its clock, and a sum of tensors over all of them."""

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from cluster.doctor.node import Asked, look, unix_seconds
from cluster.local import in_ray_job
from cluster.network import use_interface
from common.code import ROOT, ours_first

_SUM_BYTES, _SUMS = 2**25, 4
_PATIENCE_SECONDS = 120.0


@contextmanager
def joined() -> Iterator[dict[str, float]]:
    """Joined to the cluster that RAY_ADDRESS names, as in every Ray job; what the cluster has."""
    import ray

    # A job's copy of the code is on every node already; else all must see the same folder.
    environment = None if in_ray_job() else {"env_vars": {"PYTHONPATH": str(ROOT)}}
    try:
        with ours_first():
            ray.init(runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises unrelated types
        raise ConnectionError(f"no Ray cluster answers: {' '.join(str(error).split())[:300]}") from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def look_at_nodes(asked: Asked, token: str) -> dict[str, dict[str, Any]]:
    import ray

    alive = _alive()
    said = ray.get([_on(node)(look).remote(asked, token) for node in alive])
    return dict(zip(map(_name, alive), said, strict=True))


def measure_clocks() -> dict[str, float]:
    """By how many seconds each node's clock is ahead, give or take half of what the answer took."""
    import ray

    offsets = {}
    for node in _alive():
        clock = _on(node)(unix_seconds)
        ray.get(clock.remote())  # its process has started
        asked = time.time()
        answered = ray.get(clock.remote())
        offsets[_name(node)] = answered - (asked + time.time()) / 2
    return offsets


def measure_network() -> float:
    """Bytes of a tensor per second that one member on each node sums with the others by gloo. Raises ConnectionError
    if they do not reach each other."""
    import ray

    peers = [_on(node)(_Peer).remote() for node in _alive()]
    try:
        places = ray.get([peer.where.remote() for peer in peers], timeout=_PATIENCE_SECONDS)
        sums = [peer.sum.remote(rank, len(peers), *places[0]) for rank, peer in enumerate(peers)]
        return min(ray.get(sums, timeout=_PATIENCE_SECONDS))
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise ConnectionError(reason) from error


class _Peer:
    """One member of a group that sums tensors as workers do."""

    def where(self) -> tuple[str, int]:
        import ray

        address = ray.util.get_node_ip_address()
        use_interface(address)
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]

    def sum(self, rank: int, world_size: int, address: str, port: int) -> float:
        import torch
        import torch.distributed as dist

        patience = timedelta(seconds=_PATIENCE_SECONDS)
        dist.init_process_group("gloo", f"tcp://{address}:{port}", patience, world_size, rank)
        tensor = torch.ones(_SUM_BYTES // 4)
        dist.all_reduce(tensor)
        started = time.perf_counter()
        for _ in range(_SUMS):
            dist.all_reduce(tensor)
        return _SUMS * _SUM_BYTES / (time.perf_counter() - started)


def _alive() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _name(node: dict[str, Any]) -> str:
    """Of two nodes on one machine too, as in tests."""
    return f"{node['NodeManagerHostname']} ({node['NodeName']})"


def _on(node: dict[str, Any]) -> Callable[[Any], Any]:
    """`ray.remote`, bound to a node; it takes no place of a training's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where: Any = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)  # Ray's types leave this one out
    return ray.remote(num_cpus=0, scheduling_strategy=where)
