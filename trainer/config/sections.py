"""The sections of a config, apart from the network's: one frozen dataclass each, checked when it is made."""

import re
from dataclasses import dataclass
from typing import Literal

from common.checks import check_above_zero, check_at_least, check_fraction, check_whole

MAX_GLOBAL_BATCH_SIZE = 2**24
"""The order of a step is worked out in arrays of 8 bytes per image: 128 MiB each at this size."""

MAX_SECONDS = 10**9
"""torch and Python count timeouts in nanoseconds of 64 bits, which overflow at nine times this."""


@dataclass(frozen=True)
class DataConfig:
    """The packed images a run streams."""

    path: str = "demo:digits"
    """Folder that python -m data_pipeline pack made, or demo:digits, demo:faces or demo:mnist, made on first use."""
    horizontal_flip: bool = True
    """Mirror half of the draws; which half is a function of (seed, sample counter)."""
    num_threads: int = 2
    """Reading and decoding threads of each worker; they never change what is trained."""
    num_prefetch_batches: int = 4
    """Batches each worker keeps decoded ahead of the step."""
    memory_gib: float = 0.25
    """Data that fit into this much of a machine's memory when decoded are decoded once for all workers; 0: never."""
    cache_folder: str = ""
    """Where each machine keeps shards fetched from http:// or s3://; empty: shards/ in $RAYDDPM_CACHE or ~/.cache."""
    cache_gib: float = 50.0
    """Room for fetched shards on each machine; the least recently used go. Have room for a machine's share."""
    s3_endpoint_url: str = ""
    """Address of an S3-compatible service for s3:// paths; empty: $AWS_ENDPOINT_URL, or AWS itself."""
    ledger: bool = False
    """Record in ledger/ of the run what each worker was given at each step; see python -m data_pipeline audit."""

    def __post_init__(self) -> None:
        check_at_least("data", self, 1, "num_threads", "num_prefetch_batches")
        check_at_least("data", self, 0, "memory_gib")
        check_above_zero("data", self, "cache_gib")


@dataclass(frozen=True)
class OptimConfig:
    """Adam as in the paper and its code (PAPER: App. B; warm-up and clipping are only in the code)."""

    learning_rate: float = 2e-4
    """Step size after warm-up."""
    warmup_steps: int = 5000
    """The rate rises linearly from 0 at step 0; 0 switches warm-up off."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Added to the root of the bias-corrected second moment (TF1 adds it before the correction)."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this L2 norm; 0 switches clipping off."""
    clip_scope: Literal["global", "slice"] = "global"
    """global: clip the batch's gradient. slice: clip each slice's mean gradient, then average (the authors' code); a
    slice has forward and backward to itself, so that on one GPU this takes several times as long."""
    clip_slice_images: int = 16
    """Images in a slice (the authors: 16 for CIFAR-10, 8 at 256 px); independent of the number of workers."""

    def __post_init__(self) -> None:
        check_above_zero("optim", self, "learning_rate", "eps")
        check_fraction("optim", self, "beta1", "beta2")
        check_at_least("optim", self, 0, "warmup_steps", "max_grad_norm")
        check_at_least("optim", self, 1, "clip_slice_images")


@dataclass(frozen=True)
class EmaConfig:
    """The averaged weights that samples and evaluations use."""

    decay: float = 0.9999
    """Constant decay per step; the paper's value."""
    warmup: bool = False
    """True: torch-ema's min(decay, (1 + n) / (10 + n)), for short runs. The paper has no such warm-up."""

    def __post_init__(self) -> None:
        check_fraction("ema", self, "decay")


@dataclass(frozen=True)
class TrainConfig:
    """The length, batch and arithmetic of a run."""

    num_steps: int = 800_000
    """Optimiser updates; a finished run continues when this is raised."""
    global_batch_size: int = 128
    """Images in a step over all workers: a property of the run, whatever the number of workers."""
    seed: int = 0
    """Fixes initial weights, order of images, flips, timesteps, noise and dropout."""
    precision: Literal["fp32", "tf32", "bf16", "fp64"] = "fp32"
    """Arithmetic of forward and backward; weights, Adam and EMA stay float32 (fp64: all float64). tf32: on GPUs."""
    reduction: Literal["fast", "exact"] = "fast"
    """exact: the same bits on any number of workers, by forward and backward for each unit of a batch and sums along
    one fixed tree; needs workers.strategy ddp, and workers alike in device, cpus_per_worker and software."""
    unit_images: int = 0
    """Images in a unit of reduction exact; 0: an eighth of the batch. With optim.clip_scope slice a unit is a slice."""
    max_images_per_pass: int = 0
    """Memory setting: larger local batches are taken in micro-batches of at most this many images; 0: whole."""
    log_every_steps: int = 100
    """Metrics are averages over this many steps."""

    def __post_init__(self) -> None:
        check_at_least("train", self, 1, "num_steps", "global_batch_size", "log_every_steps")
        check_at_least("train", self, 0, "max_images_per_pass", "unit_images")
        if self.global_batch_size > MAX_GLOBAL_BATCH_SIZE:
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} must be at most {MAX_GLOBAL_BATCH_SIZE} (2^24), "
                "since the order of a step's images is worked out in memory"
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"train.seed {self.seed} must be in [0, 2^63)")


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept on storage."""

    every_steps: int = 5000
    """Steps from one checkpoint to the next; one more is made at the end."""
    keep_last: int = 3
    """How many of the newest checkpoints stay (at least 2)."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of this stay for good; 0: none, 1: all."""

    def __post_init__(self) -> None:
        check_at_least("checkpoint", self, 1, "every_steps")
        check_at_least("checkpoint", self, 0, "keep_every_steps")
        check_whole("checkpoint.keep_last", self.keep_last, 2, hint="one may turn out damaged")


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives and what it is called."""

    name: str = ""
    """Folder name of the run; empty: preset and a digest of what is trained, so that the same command resumes."""
    storage: str = "~/rayddpm/runs"
    """Folder that every worker reaches; runs, the MLflow database and reports live here."""
    tracking_uri: str = ""
    """MLflow server; empty: a SQLite file in the storage folder."""
    experiment: str = "rayddpm"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        if not self.storage.strip() or re.match(r"[A-Za-z][\w+.\-]*:/", self.storage):
            raise ValueError(
                f"run.storage {self.storage!r} is not a folder: give one that every worker reaches (NFS, or a bucket "
                "that is mounted as a folder)"
            )
        if not self.experiment.strip():
            raise ValueError("run.experiment is empty: give the MLflow experiment a name, such as rayddpm")
        if self.name and (self.name.startswith(".") or not all(c.isalnum() or c in "-_." for c in self.name)):
            raise ValueError(
                f"run.name {self.name!r} may hold letters, digits, '-', '_' and '.', and not begin with '.'"
            )


@dataclass(frozen=True)
class WorkersConfig:
    """The hardware; changing it never changes what is trained."""

    num_workers: int = 1
    """Data-parallel workers."""
    min_workers: int = 0
    """Under Ray, go on with as few as this when machines are lost, and take back those that return; 0: wait for all."""
    resize_check_seconds: int = 60
    """Seconds between two looks for machines that came back, while there are fewer than num_workers."""
    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """What workers divide among them: ddp nothing; zero1 optimiser state, zero2 gradients too, zero3 weights too."""
    use_gpu: bool = True
    """One GPU for each worker; on a machine of its own without any, the CPU instead."""
    cpus_per_worker: int = 1
    """Cores reserved, and torch threads used, for each worker."""
    compile: bool = False
    """Compile the network (torch.compile): a slow first step, and losses that differ by rounding."""
    fused_kernels: bool = False
    """On a GPU, norm, SiLU, dropout and time embedding of architecture ddpm by one kernel each way, in channels_last;
    not measured on a GPU yet. Losses differ by rounding."""
    max_failures: int = 3
    """How many worker failures are answered by a restart from the newest checkpoint; -1: without limit."""
    step_timeout_seconds: int = 300
    """A worker without a new step for this long writes its stacks, names who is behind, and is restarted."""
    collective_timeout_seconds: int = 600
    """A collective that waits longer ends the attempt, which is then restarted."""

    def __post_init__(self) -> None:
        timeouts = ("step_timeout_seconds", "collective_timeout_seconds", "resize_check_seconds")
        check_at_least("workers", self, 1, "num_workers", "cpus_per_worker")
        for name in timeouts:
            check_whole(f"workers.{name}", getattr(self, name), 1, MAX_SECONDS)
        check_at_least("workers", self, -1, "max_failures")
        if self.compile and self.strategy == "zero3":
            raise ValueError(
                "workers.compile true does not go with workers.strategy zero3, which moves weights in and out of the "
                "network as it runs: use zero2, or do not compile"
            )
        if not 0 <= self.min_workers <= self.num_workers:
            raise ValueError(
                f"workers.min_workers {self.min_workers} must be at most workers.num_workers {self.num_workers}, "
                "or 0 to train with exactly that number"
            )
