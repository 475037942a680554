"""What a run is trained on, in words, for its report."""

import platform
from pathlib import Path

import torch

from cluster.launch import Worker

_CPU_INFO = Path("/proc/cpuinfo")


def describe_hardware(worker: Worker, cpus_per_worker: int) -> str:
    """Such as `8 x NVIDIA H100 80GB HBM3`, or `2 x 1 core of AMD EPYC 7B13`; all workers are taken to be alike."""
    if worker.device.type == "cuda":
        return f"{worker.world_size} x {torch.cuda.get_device_name(worker.device)}"
    cores = "1 core" if cpus_per_worker == 1 else f"{cpus_per_worker} cores"
    return f"{worker.world_size} x {cores} of {cpu_name()}"


def cpu_name(info: Path = _CPU_INFO) -> str:
    """The processor's name where Linux tells it, else its architecture."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return " ".join(names[0].split()) if names and names[0] else platform.machine() or "a CPU"
