"""How much of the hardware's arithmetic a run uses: model FLOPs, counted, over the matrix products it can do, measured.

Model FLOPs are those of the mathematics (Chowdhery et al. 2022, App. B): a multiply-add is two, a training step is
three forward passes, and what gradient checkpointing computes again does not count.
"""

import time

import torch

from cluster.launch import Worker
from models.config import ModelConfig
from models.networks.table import build_model

_FORWARDS_PER_STEP = 3
_MIN_SECONDS = 0.1


def model_flops_per_image(config: ModelConfig) -> int:
    """FLOPs of the matrix products and convolutions of one image in one training step, counted without computing."""
    # It imports Triton, which takes half a second that the other workers need not spend.
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = build_model(config)
        x_t = torch.empty(1, config.image_channels, config.image_size, config.image_size)
        t = torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x_t, t)
    return _FORWARDS_PER_STEP * counter.get_total_flops()


def peak_flops_per_second(device: torch.device, precision: str) -> float:
    """FLOP/s of square matrix products on this device at `train.precision`, the best of some tenths of a second.

    The process uses as many threads as it trains with, so that workers on one machine can add their figures.
    """
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(precision, torch.float32)
    size = 8192 if device.type == "cuda" else 1024
    # Random numbers: constants cost a GPU less power, and it multiplies them faster.
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    fastest, stop = float("inf"), time.perf_counter() + _MIN_SECONDS
    while time.perf_counter() < stop or fastest == float("inf"):
        started = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * size**3 / fastest


class Peak:
    """FLOP/s that the matrix products of all workers reach together, the most that was seen.

    A machine that is busy while it is measured shows less than it can do. So when training is faster than that, the
    peak is measured again, and taken to be at least what training reached.
    """

    def __init__(self, worker: Worker, precision: str):
        self._worker, self._precision = worker, precision
        self._flops_per_second = self._measure()

    def fraction(self, flops_per_second: float) -> float:
        """What `flops_per_second`, reached by training, is of the peak: in [0, 1]."""
        if flops_per_second > self._flops_per_second:
            self._flops_per_second = max(flops_per_second, self._measure())
        return flops_per_second / self._flops_per_second

    def _measure(self) -> float:
        return self._worker.world_size * peak_flops_per_second(self._worker.device, self._precision)
