"""Checkpoints: all that is needed to resume, named and in safetensors, whatever engine wrote it; each is a snapshot.

model.safetensors  ema.safetensors  optimizer.safetensors   as named in the module
ema_float64.safetensors                                     of a float64 run alone: a snapshot's average is float32
snapshot.json  state.json  COMPLETE.json                    see cluster/storage.py for the commit
"""

import dataclasses
import json
import logging
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cluster.fault import Faults
from cluster.launch import Worker
from cluster.lease import Lease
from cluster.run_directory import (
    CHECKPOINTS,
    checkpoint_name,
    complete_checkpoints,
    is_being_evaluated,
    step_of,
)
from cluster.storage import DamagedError, commit_directory, remove_directory, remove_leftovers, verify
from common.files import read_json
from models.ema import ExponentialMovingAverage
from models.snapshot import save_tensors, write_snapshot
from trainer.config.config import Config
from trainer.config.sections import CheckpointConfig
from trainer.engines.base import Engine
from trainer.hooks.window import Window

_EMA_FLOAT64 = "ema_float64.safetensors"
_log = logging.getLogger(__name__)


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
    """Where training goes on."""

    step: int
    """The number of completed updates."""
    window: dict[str, Any] | None
    """The window of metrics that had begun."""
    config_digest: str | None
    """Of the config that trained until here; None at step 0."""


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
        self._run_directory, self._parent = run_directory, run_directory / CHECKPOINTS
        self._config, self._lease, self._provenance = config, lease, provenance
        self._attempt = uuid.uuid4().hex[:8]
        self._passed_over: set[Path] = set()

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
        try:
            self._apply_retention(self._config.checkpoint)
        except OSError as error:
            _log.warning("older checkpoints are kept until the next one is written: %s", error)
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
            if any(average.dtype == torch.float64 for average in captured.ema.values()):
                exact = {name: average.contiguous() for name, average in captured.ema.items()}
                save_tensors(exact, directory / _EMA_FLOAT64)
            (directory / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))
            self._check_lease()
            reached("after_write")

        name = checkpoint_name(captured.step, self._attempt)
        return commit_directory(self._parent, name, write, {"step": captured.step}, reached)

    def restore(self, engine: Engine, ema: ExponentialMovingAverage, worker: Worker) -> Resumed:
        """Load the newest checkpoint that verifies; step 0 if there is none. Collective: rank 0 says which it is.

        One that is damaged or cannot be read is reported and passed over. Raises DamagedError if there are checkpoints
        and none verifies.
        """
        found = self._newest_whole() if worker.rank == 0 else None
        chosen = [found.directory if found else None]
        if worker.world_size > 1:
            dist.broadcast_object_list(chosen, src=0, device=worker.device)
        if chosen[0] is None:
            return Resumed(0, None, None)
        state, tensors = found.content if found else _read(chosen[0])
        engine.load_state(tensors["model"], tensors["optimizer"])
        ema.load_named_state(tensors["ema"], state["ema"]["num_updates"], state["ema"]["decay"])
        return Resumed(state["step"], state.get("window"), state.get("config_digest"))

    def _newest_whole(self) -> "_Whole | None":
        checkpoints = complete_checkpoints(self._run_directory)
        for directory in reversed(checkpoints):
            try:
                verify(directory)
                return _Whole(directory, _read(directory))
            except DamagedError as error:
                _log.error("checkpoint passed over: %s", error)
            except OSError as error:
                _log.warning("checkpoint passed over: %s cannot be read: %s", directory, error)
            self._passed_over.add(directory)
        if checkpoints:
            raise DamagedError(f"none of the {len(checkpoints)} checkpoints in {self._parent} verifies; see the log")
        return None

    def _apply_retention(self, keep: CheckpointConfig) -> None:
        """Never the newest `keep_last` (at least 2), nor the permanent ones, nor one an evaluation holds.

        Those passed over do not count, and go once they are older than what is kept.
        """
        found = complete_checkpoints(self._run_directory)
        oldest_kept = [directory for directory in found if directory not in self._passed_over][-keep.keep_last :][0]
        for directory in found[: found.index(oldest_kept)]:
            permanent = keep.keep_every_steps and step_of(directory) % keep.keep_every_steps == 0
            if not permanent and not is_being_evaluated(self._run_directory, directory.name):
                remove_directory(directory)

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()


class _Whole(NamedTuple):
    """A checkpoint that verifies, and what it holds."""

    directory: Path
    content: tuple[dict[str, Any], dict[str, dict[str, Tensor]]]


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """state.json, and the tensors by file. Raises DamagedError for a file that does not parse, whatever its hash."""
    try:
        state = read_json(directory / "state.json")
    except ValueError as error:
        raise DamagedError(str(error)) from error
    names = {name: f"{name}.safetensors" for name in ("model", "optimizer", "ema")}
    if (directory / _EMA_FLOAT64).exists():
        names["ema"] = _EMA_FLOAT64
    tensors = {}
    for kind, name in names.items():
        try:
            tensors[kind] = load_file(directory / name)
        except SafetensorError as error:
            raise DamagedError(f"{directory}: {name} is not a safetensors file ({error})") from error
    return state, tensors
