"""The sampling pool: Ray actors that take blocks of image ids one after the other.

The number does not depend on the actors: a block is a function of its ids, files are combined in order of ids. An actor
that dies is replaced and its block given out again.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.local import in_ray_job
from common.code import ROOT, ours_first
from common.process import sessions_of_their_own
from eval.errors import ReportAlive
from eval.protocol import Protocol
from eval.sampling.blocks import BlockWorker
from eval.settings import EvaluationSettings, PoolSettings

_MAX_REPLACEMENTS = 3
_REPORT_SECONDS = 0.5
_WARN_SECONDS = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RayPool:
    """Runs blocks on Ray actors; an instance is an `eval.sampling.evaluation.RunBlocks`."""

    pool: PoolSettings

    def __call__(
        self,
        checkpoint: Path,
        protocol: Protocol,
        folder: Path,
        settings: EvaluationSettings,
        blocks: list[int],
        report_alive: ReportAlive = lambda: None,
    ) -> Iterator[int]:
        """Yield each block when its file is there, in the order of completion; `report_alive` is called while none is.

        Raises what the work raised, and RuntimeError when actors keep dying.
        """
        if not blocks:
            return
        connect()
        actors = _Actors(self.pool, (checkpoint, protocol, folder, settings), blocks)
        try:
            yield from actors.run(report_alive)
        finally:
            actors.end()


class _Actors:
    """The actors of one evaluation, what each is doing, and what is left to do.

    A block goes only to an actor that has answered: one that the cluster cannot place would
    keep it for ever.
    """

    def __init__(self, pool: PoolSettings, arguments: tuple[Any, ...], blocks: list[int]):
        self._make: Any = ray.remote(BlockWorker).options(
            num_cpus=pool.cpus_per_actor,
            num_gpus=pool.gpus_per_actor,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        self._pool, self._arguments = pool, arguments
        self._waiting = list(reversed(blocks))
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, int]] = {}
        self._num_replaced = 0
        self._warn_at = time.monotonic() + _WARN_SECONDS
        for _ in range(min(pool.num_actors, len(blocks))):
            self._start_actor()

    def run(self, report_alive: ReportAlive) -> Iterator[int]:
        while self._waiting or self._busy:
            answered, _ = ray.wait([*self._busy, *self._starting], num_returns=1, timeout=_REPORT_SECONDS)
            if not answered:
                self._warn_if_none_can_be_placed()
                report_alive()
                continue
            actor, block = self._busy.pop(answered[0], None) or (self._starting.pop(answered[0]), None)
            try:
                ray.get(answered[0])
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:  # the actor died, ran out of memory, or its machine is gone
                self._replace(actor, block, error)
            else:
                self._give_work(actor)
                if block is not None:
                    yield block

    def end(self) -> None:
        for actor in [*self._starting.values(), *(actor for actor, _ in self._busy.values())]:
            ray.kill(actor)

    def _start_actor(self) -> None:
        actor = self._make.remote(*self._arguments)
        self._starting[actor.__ray_ready__.remote()] = actor

    def _give_work(self, actor: Any) -> None:
        """The next block; an actor for which there is none leaves its resources to others."""
        if self._waiting:
            block = self._waiting.pop()
            self._busy[actor.run.remote(block)] = (actor, block)
        else:
            ray.kill(actor)

    def _replace(self, actor: Any, block: int | None, error: Exception) -> None:
        """A machine taken away costs a block; work that kills every actor ends here."""
        self._num_replaced += 1
        if self._num_replaced > _MAX_REPLACEMENTS:
            reason = str(error).strip().partition("\n")[0]
            raise RuntimeError(f"{self._num_replaced} sampling actors died: {reason}") from error
        ray.kill(actor)
        if block is not None:
            self._waiting.append(block)
        self._start_actor()

    def _warn_if_none_can_be_placed(self) -> None:
        if self._busy or time.monotonic() < self._warn_at:
            return
        self._warn_at = time.monotonic() + _WARN_SECONDS
        needed = f"{self._pool.cpus_per_actor:g} CPUs and {self._pool.gpus_per_actor:g} GPUs"
        _log.warning("no sampling actor could be placed: the cluster has no %s free; waiting", needed)


def joins_cluster() -> bool:
    """Whether there is a cluster to join: that of this job, or of RAY_ADDRESS."""
    return ray.is_initialized() or in_ray_job() or "RAY_ADDRESS" in os.environ


@sessions_of_their_own()
def connect() -> None:
    """Join the Ray cluster of this job or of RAY_ADDRESS, else start one on loopback for this process."""
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    with ours_first():
        if joins_cluster():
            ray.init(log_to_driver=False)
        else:
            ray.init(address="local", include_dashboard=False, log_to_driver=False)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end the evaluator in the middle of a block
