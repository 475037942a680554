"""How an evaluation is run: what may change the time it takes, never what it measures (that is the protocol)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.checks import check_number, check_whole


@dataclass(frozen=True)
class EvaluationSettings:
    """Resources of an evaluator."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to sample; auto takes a GPU if there is one."""
    num_threads: int | None = None
    """CPU threads of a process; torch's choice if not given."""
    block_images: int = 64
    """Images of a block: sampled together, resumed at its borders. Another size may move the last float bits."""
    batch_size: int | None = None
    """Images sampled at once, if memory needs fewer than a block; halved by itself when a GPU runs out."""
    num_bootstrap: int = 20
    """Bootstrap replicates behind the interval; 0 leaves it out."""
    weights_folder: Path | None = None
    """Folder that holds the Inception file; $RAYDDPM_WEIGHTS or the user's cache if not given."""

    def __post_init__(self) -> None:
        for name, least in (("block_images", 1), ("num_bootstrap", 0), ("num_threads", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, least)

    def prepare_process(self) -> None:
        """Set the threads, and float32 that is float32 on a GPU too, of the process that computes."""
        import torch

        from models.precision import use_tf32

        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        use_tf32(False)

    def torch_device(self) -> str:
        """cpu or cuda. Raises ValueError if cuda is asked for and not there."""
        import torch

        if self.device == "cpu":
            return "cpu"
        if torch.cuda.is_available():
            return "cuda"
        if self.device == "cuda":
            raise ValueError("device=cuda: this machine has no usable GPU; give --device cpu")
        return "cpu"


@dataclass(frozen=True)
class PoolSettings:
    """The Ray actors that share an evaluation; their number changes how long it takes, nothing else."""

    num_actors: int = 0
    """Ray actors that sample; 0 samples in this process."""
    cpus_per_actor: float = 1.0
    """CPUs, or a fraction of one, that each actor reserves."""
    gpus_per_actor: float = 0.0
    """GPUs, or a fraction of one, that each actor reserves."""

    def __post_init__(self) -> None:
        for name in ("num_actors", "cpus_per_actor", "gpus_per_actor"):
            check_number(name, getattr(self, name), least=0)
