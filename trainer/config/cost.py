"""What a run takes on this machine's CPU at the very least, so that nobody starts weeks of work by mistake."""

import torch

from trainer.config.config import Config
from trainer.hooks.throughput import model_flops_per_image, peak_flops_per_second

MAX_CPU_HOURS = 24.0
"""Longer runs on a CPU need --allow-long-cpu-run."""


def check_cpu_hours(config: Config, num_steps: int) -> None:
    """Raises ValueError if `num_steps` updates take more than `MAX_CPU_HOURS` at this CPU's measured peak.

    The peak is that of matrix products on all of PyTorch's threads. Training takes longer: no network reaches it.
    """
    flops = model_flops_per_image(config.model) * config.train.global_batch_size * num_steps
    peak = peak_flops_per_second(torch.device("cpu"), config.train.precision)
    hours = flops / peak / 3600
    if hours > MAX_CPU_HOURS:
        raise ValueError(
            f"training would take at least {hours / 24:,.1f} days on this CPU: {num_steps:,} steps of "
            f"{config.train.global_batch_size} images are {flops:.1e} FLOP; its matrix products, measured just now, do "
            f"{peak / 1e9:,.0f} GFLOP/s, which no network reaches; use a GPU, a smaller preset (small32, small64) or "
            "fewer --train.num-steps, or add --allow-long-cpu-run"
        )
