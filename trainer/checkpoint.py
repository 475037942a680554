"""Checkpoints: all that is needed to resume, named and in safetensors, whatever engine wrote it; each is a snapshot.

model.safetensors  ema.safetensors  optimizer.safetensors   as named in the module
snapshot.json  state.json  COMPLETE.json                    see cluster/storage.py for the commit
"""

import json
import logging
import uuid
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from cluster.storage import DamagedError, commit_directory, complete_directories, remove_directory, verify
from models.ema import ExponentialMovingAverage
from models.snapshot import write_snapshot
from trainer.config import CheckpointConfig, Config
from trainer.engines import DdpEngine

_log = logging.getLogger(__name__)


def step_of(checkpoint: Path) -> int:
    """The number of completed updates, from a checkpoint's folder name `step-00005000-<attempt>`."""
    return int(checkpoint.name.split("-")[1])


class CheckpointStore:
    """The checkpoints of one run. `save` is for rank 0 alone; `restore` for all ranks."""

    def __init__(self, run_directory: Path, config: Config, provenance: dict[str, Any]):
        """provenance: what state.json and the snapshot say of their origin (run, config digest, data digest)."""
        self._parent = run_directory / "checkpoints"
        self._evaluations = run_directory / "evals"
        self._config, self._provenance = config, provenance
        self._attempt = uuid.uuid4().hex[:8]

    def save(self, step: int, engine: DdpEngine, ema: ExponentialMovingAverage) -> Path:
        """Commit the state after `step` updates, then delete what retention no longer keeps."""
        state = {
            **self._provenance,
            "step": step,
            "ema": {
                "decay": ema.decay,
                "num_updates": ema.update_count,
                "initial_weight_share": ema.initial_weight_share,
            },
        }

        def write(directory: Path) -> None:
            save_file(engine.model_state(), directory / "model.safetensors")
            save_file(engine.optimizer_state(), directory / "optimizer.safetensors")
            write_snapshot(directory, ema.named_state(), self._config.model, self._config.diffusion, state)
            (directory / "state.json").write_text(json.dumps(state, indent=2, sort_keys=True))

        directory = commit_directory(self._parent, f"step-{step:08d}-{self._attempt}", write, {"step": step})
        self._apply_retention(self._config.checkpoint)
        return directory

    def restore(self, engine: DdpEngine, ema: ExponentialMovingAverage) -> int:
        """Load the newest checkpoint that verifies; the number of completed updates, 0 if there is none.

        A damaged one is reported and passed over. Raises DamagedError if there are checkpoints and none verifies.
        """
        checkpoints = complete_directories(self._parent)
        for directory in reversed(checkpoints):
            try:
                verify(directory)
            except DamagedError as error:
                _log.error("checkpoint passed over: %s", error)
                continue
            return self._load(directory, engine, ema)
        if checkpoints:
            raise DamagedError(f"none of the {len(checkpoints)} checkpoints in {self._parent} verifies; see the log")
        return 0

    def _load(self, directory: Path, engine: DdpEngine, ema: ExponentialMovingAverage) -> int:
        state = json.loads((directory / "state.json").read_text())
        engine.load_state(load_file(directory / "model.safetensors"), load_file(directory / "optimizer.safetensors"))
        ema.load_named_state(
            load_file(directory / "ema.safetensors"), state["ema"]["num_updates"], state["ema"]["decay"]
        )
        return state["step"]

    def _apply_retention(self, keep: CheckpointConfig) -> None:
        """Never the newest `keep_last` (at least 2), nor the permanent ones, nor one an evaluation holds."""
        for directory in complete_directories(self._parent)[: -keep.keep_last]:
            permanent = keep.keep_every_steps and step_of(directory) % keep.keep_every_steps == 0
            held = any((self._evaluations / directory.name).glob("*.claim"))
            if not permanent and not held:
                remove_directory(directory)
