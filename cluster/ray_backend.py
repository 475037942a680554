"""How Ray's workers find each other and their cluster: by the node's Ray address, and once more if they did not.

Imported where Ray may be: its settings are read at that moment (`cluster.ray_train`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.exceptions import RayTaskError
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import BackendConfig
from ray.train.torch.config import TorchConfig, _TorchBackend
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from cluster.launch import Resources
from cluster.network import cannot_connect, use_interface


@dataclass
class ConnectingTorchConfig(TorchConfig):
    """max_failures: how many starts in vain are answered by new workers; -1: without limit."""

    max_failures: int = 3

    @property
    def backend_cls(self) -> type["ConnectingBackend"]:
        return ConnectingBackend


class ConnectingBackend(_TorchBackend):
    """Ray makes one for all attempts of a run."""

    def __init__(self) -> None:
        super().__init__()
        self._failures = 0

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ConnectingTorchConfig)
        ends = worker_group.execute(_use_node_interface)
        try:
            super().on_start(worker_group, backend_config)
        except RayTaskError as error:
            self._failures += 1
            line = cannot_connect(ends, error)
            if isinstance(worker_group, WorkerGroup):
                worker_group.abort()  # Ray would leave these workers where the next are to come
            if 0 <= backend_config.max_failures < self._failures:
                raise ConnectionError(line) from None
            raise WorkerGroupStartupFailedError(f"start {self._failures} failed: {line}") from None  # Ray starts anew
        self._failures = 0


def torch_config(resources: Resources) -> ConnectingTorchConfig:
    return ConnectingTorchConfig(
        backend="nccl" if resources.use_gpu else "gloo",
        timeout_s=resources.timeout_seconds,
        max_failures=resources.max_failures,
    )


def _use_node_interface() -> str:
    return use_interface(ray.util.get_node_ip_address())


@contextmanager
def naming_the_cluster() -> Iterator[None]:
    """RAY_ADDRESS for Ray's controller and all that it starts.

    Without it Ray's watcher over the workers' placement group asks the cluster that was started last on this machine,
    does not find the controller there, and takes the workers from a run that trains.
    """
    ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")
    given = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        if given is not None:
            os.environ["RAY_ADDRESS"] = given
