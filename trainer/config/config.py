"""What a run is: sections of frozen dataclasses composed into `Config`, and its forms as plain values and digest."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipeline.order import MAX_COUNTER
from models.config import DiffusionConfig, ModelConfig
from trainer.config.sections import (
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    WorkersConfig,
)

Launcher = Literal["ray", "local"]
_NUM_UNITS = 8
"""In a batch under train.reduction exact, if the user names no size of a unit: as many as the authors had TPU cores."""
DROPOUT_MASKS = "train.dropout_masks"
"""In the semantics of a run with dropout; those of before masks were a function of the sample counter lack it."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    run: RunConfig = field(default_factory=RunConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)

    def __post_init__(self) -> None:
        if self.train.global_batch_size < self.workers.num_workers:
            raise ValueError(
                f"train.global_batch_size {self.train.global_batch_size} is smaller than workers.num_workers "
                f"{self.workers.num_workers}: every worker needs an image; raise the batch or use fewer workers"
            )
        if self.train.num_steps * self.train.global_batch_size > MAX_COUNTER:
            raise ValueError(
                f"train.num_steps {self.train.num_steps} times train.global_batch_size {self.train.global_batch_size} "
                "must be at most 2^62, where the counter of samples ends"
            )
        if self.optim.clip_scope == "slice" and self.train.global_batch_size % self.optim.clip_slice_images:
            raise ValueError(
                f"optim.clip_slice_images {self.optim.clip_slice_images} must divide train.global_batch_size "
                f"{self.train.global_batch_size}"
            )
        if self.train.reduction == "exact":
            self._check_exact()
        if self.workers.num_workers * self.slice_images > self.train.global_batch_size:
            num_slices = self.train.global_batch_size // self.slice_images
            slices, size, way = (
                ("clipping slices", "optim.clip_slice_images", "optim.clip_scope global")
                if self.optim.clip_scope == "slice"
                else ("units", "train.unit_images", "smaller units")
            )
            raise ValueError(
                f"workers.num_workers {self.workers.num_workers} is more than the {num_slices} {slices} of a batch "
                f"(train.global_batch_size / {size}): use fewer workers, or {way}"
            )

    def _check_exact(self) -> None:
        if self.workers.strategy != "ddp":
            raise ValueError(
                f"train.reduction exact does not go with workers.strategy {self.workers.strategy}, whose sums depend "
                "on the number of workers: use ddp, or train.reduction fast"
            )
        if self.train.global_batch_size % self.slice_images:
            raise ValueError(
                f"train.global_batch_size {self.train.global_batch_size} is not made of units of {self.slice_images} "
                "images, as train.reduction exact needs: set train.unit_images to a divisor of it"
            )

    @property
    def slice_images(self) -> int:
        """Images that stay together on one worker: a clipping slice, or a unit of an exact reduction."""
        if self.optim.clip_scope == "slice":
            return self.optim.clip_slice_images
        if self.train.reduction == "exact":
            return self.train.unit_images or max(1, self.train.global_batch_size // _NUM_UNITS)
        return 1


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Sections of plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(sections: dict[str, dict[str, Any]]) -> Config:
    """The inverse of `to_dict`."""
    types = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    return Config(**{name: types[name](**_tuples(values)) for name, values in sections.items()})  # type: ignore


def semantics(config: Config, manifest_digest: str) -> dict[str, Any]:
    """Flat name -> value of all that decides what is trained. A run with other semantics is another run.

    Not in it: the hardware, the length, how often to log and save, and where things lie.
    """
    sections = to_dict(config)
    flat = {
        f"{section}.{name}": value
        for section in ("model", "diffusion", "optim", "ema")
        for name, value in sections[section].items()
    }
    flat |= {f"train.{name}": sections["train"][name] for name in ("global_batch_size", "seed", "precision")}
    flat["data.horizontal_flip"] = config.data.horizontal_flip
    flat["data.digest"] = manifest_digest
    del flat["model.gradient_checkpointing"]
    if config.train.reduction == "exact":
        # Said only where it is, so that runs of earlier versions keep their digests.
        flat |= {"train.reduction": "exact", "train.unit_images": config.slice_images}
    if config.model.dropout:
        flat[DROPOUT_MASKS] = "by sample counter"
    return flat


def name_digest(semantic_values: dict[str, Any]) -> str:
    """As `digest`, of what a user sets: the name of a run, which earlier versions gave to the same settings."""
    return digest({name: value for name, value in semantic_values.items() if name != DROPOUT_MASKS})


def digest(semantic_values: dict[str, Any]) -> str:
    """sha256 hex of the canonical JSON of `semantics`."""
    return hashlib.sha256(json.dumps(semantic_values, sort_keys=True).encode()).hexdigest()


def flatten(config: Config) -> dict[str, Any]:
    """section.field -> value, as MLflow params."""
    return {f"{section}.{name}": v for section, values in to_dict(config).items() for name, v in values.items()}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
