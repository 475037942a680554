"""Checkpoints: all that is needed to resume, named and in safetensors, whatever engine wrote it; each is a snapshot.

model.safetensors  ema.safetensors  optimizer.safetensors   as named in the module
snapshot.json  state.json  COMPLETE.json                    see cluster/storage.py for the commit
"""

import dataclasses
import json
import logging
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cluster.fault import Faults
from cluster.launch import Worker
from cluster.lease import Lease
from cluster.storage import (
    COMPLETE,
    DamagedError,
    commit_directory,
    complete_directories,
    remove_directory,
    remove_leftovers,
    verify,
)
from eval.backlog import held_checkpoints
from eval.results import checkpoint_step
from models.ema import ExponentialMovingAverage
from models.snapshot import save_tensors, write_snapshot
from trainer.config.config import CheckpointConfig, Config
from trainer.engines.base import Engine
from trainer.hooks.window import Window

_log = logging.getLogger(__name__)


def step_of(checkpoint: Path) -> int:
    """The number of completed updates, from a checkpoint's folder name `step-00005000-<attempt>`."""
    return checkpoint_step(checkpoint.name)


@dataclass(frozen=True)
class Captured:
    """All of a training state in host memory, free of the training that goes on."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ema: dict[str, Tensor]
    ema_progress: dict[str, float]
    """decay, number of updates, share of the initial weights."""
    window: Window
    """Sums over the steps that are not logged yet."""


class Resumed(NamedTuple):
    """Where training goes on: the number of completed updates, and the window of metrics that had begun."""

    step: int
    window: dict[str, Any] | None


def capture(step: int, engine: Engine, ema: ExponentialMovingAverage, window: Window) -> Captured:
    """Copy the state after `step` updates to the host. Collective: every rank calls it, rank 0 saves it."""
    progress = {
        "decay": ema.decay,
        "num_updates": ema.update_count or 0,
        "initial_weight_share": ema.initial_weight_share,
    }
    average = {name: tensor.cpu() for name, tensor in ema.named_state().items()}
    return Captured(step, engine.model_state(), engine.optimizer_state(), average, progress, window)


class CheckpointStore:
    """The checkpoints of one run. `save` is for rank 0 alone; `restore` for all ranks."""

    def __init__(
        self,
        run_directory: Path,
        config: Config,
        lease: Lease | None,
        provenance: dict[str, Any],
        faults: Faults | None = None,
    ):
        """lease: the run's; a worker whose run was taken over commits nothing. None: nobody else can take it over.

        provenance: what state.json and the snapshot say of their origin (run, config digest, data digest).
        """
        self.faults = faults or Faults()
        self._parent = run_directory / "checkpoints"
        self._config, self._lease, self._provenance = config, lease, provenance
        self._attempt = uuid.uuid4().hex[:8]
        self._damaged: set[Path] = set()

    def save(self, captured: Captured) -> Path:
        """Commit a captured state, then delete what retention no longer keeps. A failed write is tried once more.

        Raises OSError, with nothing of the new checkpoint left and the old ones untouched.
        """
        self._check_lease()
        remove_leftovers(self._parent)  # of a writer that was killed; there is no other than this one
        try:
            directory = self._commit(captured)
        except OSError as error:
            _log.warning("checkpoint of step %d is tried again: %s", captured.step, error)
            directory = self._commit_at_last(captured)
        self._apply_retention(self._config.checkpoint)
        return directory

    def _commit_at_last(self, captured: Captured) -> Path:
        try:
            return self._commit(captured)
        except OSError as error:
            raise OSError(
                f"the checkpoint of step {captured.step} could not be written, twice ({error}); the older ones in "
                f"{self._parent} are untouched: mend it, and the same command goes on from the newest"
            ) from error

    def _commit(self, captured: Captured) -> Path:
        state = {
            **self._provenance,
            "step": captured.step,
            "ema": captured.ema_progress,
            "window": dataclasses.asdict(captured.window),
        }
        reached = self.faults.at("save", captured.step)

        def write(directory: Path) -> None:
            reached("before_write")
            save_tensors(captured.model, directory / "model.safetensors")
            reached("in_write")
            save_tensors(captured.optimizer, directory / "optimizer.safetensors")
            write_snapshot(directory, captured.ema, self._config.model, self._config.diffusion, state)
            (directory / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))
            self._check_lease()
            reached("after_write")

        name = f"step-{captured.step:08d}-{self._attempt}"
        return commit_directory(self._parent, name, write, {"step": captured.step}, reached)

    def restore(self, engine: Engine, ema: ExponentialMovingAverage, worker: Worker) -> Resumed:
        """Load the newest checkpoint that verifies; step 0 if there is none. Collective: rank 0 says which it is.

        A damaged one is reported and passed over. Raises DamagedError if there are checkpoints and none verifies.
        """
        found = self._newest_whole() if worker.rank == 0 else None
        chosen = [found.directory if found else None]
        if worker.world_size > 1:
            dist.broadcast_object_list(chosen, src=0, device=worker.device)
        if chosen[0] is None:
            return Resumed(0, None)
        state, tensors = found.content if found else _read(chosen[0])
        engine.load_state(tensors["model"], tensors["optimizer"])
        ema.load_named_state(tensors["ema"], state["ema"]["num_updates"], state["ema"]["decay"])
        return Resumed(state["step"], state.get("window"))

    def _newest_whole(self) -> "_Whole | None":
        checkpoints = complete_directories(self._parent)
        for directory in reversed(checkpoints):
            try:
                verify(directory)
                return _Whole(directory, _read(directory))
            except DamagedError as error:
                _log.error("checkpoint passed over: %s", error)
                self._damaged.add(directory)
        if checkpoints:
            raise DamagedError(f"none of the {len(checkpoints)} checkpoints in {self._parent} verifies; see the log")
        return None

    def _apply_retention(self, keep: CheckpointConfig) -> None:
        """Never the newest `keep_last` (at least 2), nor the permanent ones, nor one an evaluation holds.

        Those found damaged do not count, and go once they are older than what is kept.
        """
        held = held_checkpoints(self._parent.parent)
        found = sorted(complete_directories(self._parent), key=_age)
        kept = [directory for directory in found if directory not in self._damaged][-keep.keep_last :]
        for directory in found:
            permanent = keep.keep_every_steps and step_of(directory) % keep.keep_every_steps == 0
            newer = _age(directory) >= _age(kept[0])
            if not newer and not permanent and directory.name not in held:
                remove_directory(directory)

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()


class _Whole(NamedTuple):
    """A checkpoint that verifies, and what it holds."""

    directory: Path
    content: tuple[dict[str, Any], dict[str, dict[str, Tensor]]]


def _age(checkpoint: Path) -> tuple[int, float]:
    """To sort by: the step, and of two with the same, as after a damaged one was passed over, when it was committed."""
    return step_of(checkpoint), (checkpoint / COMPLETE).stat().st_mtime


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """state.json, and the tensors by file. Raises DamagedError for a file that is no safetensors, whatever its hash."""
    state = json.loads((directory / "state.json").read_text())
    tensors = {}
    for name in ("model", "optimizer", "ema"):
        try:
            tensors[name] = load_file(directory / f"{name}.safetensors")
        except SafetensorError as error:
            raise DamagedError(f"{directory}: {name}.safetensors is not a safetensors file ({error})") from error
    return state, tensors


@dataclass(frozen=True)
class Saved:
    """What a finished save cost."""

    step: int
    seconds: float
    num_bytes: int
    name: str
    """Of the checkpoint's folder."""


class BackgroundSaver:
    """Saves in a thread while training goes on; one at a time, so that a slow disk is felt and not hidden."""

    def __init__(self, store: CheckpointStore):
        self._store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[Saved] | None = None

    def start(self, captured: Captured) -> None:
        """Begin to save. The previous save must have been collected."""
        assert self._running is None
        self._running = self._pool.submit(self._save, captured)

    @property
    def is_running(self) -> bool:
        running = self._running
        return running is not None and not running.done()

    def collect(self, wait: bool) -> Saved | None:
        """The save that has ended since the last call, if any; wait: until there is none under way.

        Raises OSError if it failed.
        """
        if self._running is None or not (wait or self._running.done()):
            return None
        try:
            return self._running.result()
        finally:
            self._running = None

    def _save(self, captured: Captured) -> Saved:
        started = time.perf_counter()
        directory = self._store.save(captured)
        num_bytes = sum(path.stat().st_size for path in directory.iterdir())
        return Saved(captured.step, time.perf_counter() - started, num_bytes, directory.name)
