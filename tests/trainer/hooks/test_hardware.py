"""What a run is trained on, in words."""

import platform
from pathlib import Path

import pytest
import torch

from cluster.launch import Worker
from trainer.hooks.hardware import cpu_name, describe_hardware


@pytest.mark.parametrize(("cpus", "said"), [(1, "3 x 1 core of "), (2, "3 x 2 cores of ")])
def test_workers_and_their_cores_are_counted(cpus: int, said: str) -> None:
    worker = Worker(rank=1, world_size=3, device=torch.device("cpu"))
    assert describe_hardware(worker, cpus) == said + cpu_name()


def test_a_processor_is_named_as_linux_names_it(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor : 0\nmodel name\t: Some  CPU @ 2 GHz\n\nprocessor : 1\nmodel name\t: Some  CPU @ 2 GHz\n"
    )
    assert cpu_name(info) == "Some CPU @ 2 GHz"
    info.write_text("processor : 0\n")
    assert cpu_name(info) == cpu_name(tmp_path / "none") == platform.machine()
