"""What a run asks of network, storage and evaluators on 8 to 1,024 GPUs, from figures of one GPU and stated links.

    python benchmarks/scale.py

Projected, not measured: the inputs are (docs/SCALING.md says where), the formulas are tested against processes here.
"""

import math
from dataclasses import dataclass

from common.command_line import run_script


@dataclass(frozen=True)
class Workload:
    """One network on one GPU; measured, but for the bytes of an image."""

    num_parameters: int
    step_seconds: float
    """Of `local_batch_size` images, without communication."""
    local_batch_size: int
    image_bytes: int
    """As packed."""
    network_evaluations_per_second: float
    """Of one image, sampling, on one GPU."""


@dataclass(frozen=True)
class Links:
    """Bytes per second in one direction."""

    gpus_per_node: int
    gpu_bytes_per_second: float
    """Of a GPU, within its node."""
    node_bytes_per_second: float
    """Of a node, to all others."""
    latency_seconds: float = 10e-6
    """Of one message between nodes."""


WORKLOADS = {
    "cifar10": Workload(35_746_307, 0.067, 128, 2_500, 7069.0),
    "celebahq256": Workload(113_673_219, 0.1268, 16, 100_000, 176.0),
}
LINKS = {
    "NVLink, 8 x 400 Gb/s InfiniBand": Links(8, 450e9, 8 * 50e9),
    "NVLink, 100 GbE": Links(8, 450e9, 12.5e9),
}
NUM_GPUS = (8, 64, 256, 1024)
NUM_SAMPLES, NUM_SAMPLING_STEPS = 50_000, 50
CHECKPOINT_SECONDS = 600.0
"""Training between two checkpoints, each of which is evaluated with this many samples."""
_OVERLAP = 0.5
"""The part of a step's time beside which gradients travel: backward is two thirds, its first bucket comes late."""
_LAST_BUCKET_BYTES = 25 * 2**20
"""DDP's size of a bucket; the last one to be full has nothing left to hide behind."""
_SMALL_COLLECTIVES = 2
"""Of a step, beside the gradients: whether to stop, and the loss."""


def all_reduce_bytes(num_bytes: float, num_workers: int) -> float:
    """What each worker sends, and receives, to sum `num_bytes` over a ring: 2 (W - 1) / W x the bytes.

    W - 1 turns that sum a W-th part each, W - 1 that hand the sums round (Patarasuk and Yuan 2009).
    """
    return 2 * (num_workers - 1) / num_workers * num_bytes


def all_reduce_seconds(num_bytes: float, num_gpus: int, links: Links) -> float:
    """Within nodes, then between them, where each node's link carries a ring of nodes; the latency of that ring."""
    within = min(num_gpus, links.gpus_per_node)
    num_nodes = math.ceil(num_gpus / links.gpus_per_node)
    inside = all_reduce_bytes(num_bytes, within) / links.gpu_bytes_per_second
    between = all_reduce_bytes(num_bytes, num_nodes) / links.node_bytes_per_second
    return inside + between + 2 * (num_nodes - 1) * links.latency_seconds


def gradient_bytes(workload: Workload) -> int:
    """float32, whatever the precision of forward and backward."""
    return 4 * workload.num_parameters


def step_seconds(workload: Workload, num_gpus: int, links: Links) -> float:
    """Compute, and what of the communication is not hidden behind it."""
    total = all_reduce_seconds(gradient_bytes(workload), num_gpus, links)
    last = all_reduce_seconds(min(_LAST_BUCKET_BYTES, gradient_bytes(workload)), num_gpus, links)
    small = _SMALL_COLLECTIVES * all_reduce_seconds(8, num_gpus, links)
    return workload.step_seconds + max(total - _OVERLAP * workload.step_seconds, last) + small


def read_bytes_per_second(workload: Workload, num_gpus: int, links: Links) -> float:
    """What all workers read while nothing is cached: each image of a step once."""
    num_images = num_gpus * workload.local_batch_size
    return num_images * workload.image_bytes / step_seconds(workload, num_gpus, links)


def most_shards_of_a_worker(num_shards: int, shard_images: int, global_batch_size: int, num_workers: int) -> int:
    """That a worker reads from in an epoch: its lanes' part of the epoch's line, begun and ended inside of shards.

    A lane has an epoch's images / G, rounded up in some: a worker whose lanes all have one more reads more than 1 / W.
    """
    lane_images = math.ceil(num_shards * shard_images / global_batch_size)
    num_lanes = math.ceil(global_batch_size / num_workers)
    return min(num_shards, math.ceil(num_lanes * lane_images / shard_images) + 1)


def most_shards_of_all_workers(num_shards: int, num_workers: int) -> int:
    """Summed over workers: neighbours share a shard at most."""
    return num_shards + num_workers - 1


def checkpoint_bytes(num_parameters: int) -> int:
    """Weights, average and Adam's two moments in float32, written by one worker: it does not grow with their number."""
    return 16 * num_parameters


def evaluators(workload: Workload) -> float:
    """GPUs that sample all day so that each checkpoint has its number before the next one is there."""
    evaluations = NUM_SAMPLES * NUM_SAMPLING_STEPS
    return evaluations / workload.network_evaluations_per_second / CHECKPOINT_SECONDS


def main() -> None:
    """Print a table for each network and each kind of link."""
    for name, workload in WORKLOADS.items():
        num_bytes, every = checkpoint_bytes(workload.num_parameters), CHECKPOINT_SECONDS
        print(
            f"\n{name}: {workload.num_parameters / 1e6:.1f}M parameters, {workload.local_batch_size} images per GPU. "
            f"A checkpoint of {num_bytes / 1e9:.2f} GB every {every:.0f} s is {num_bytes / every / 1e6:.1f} MB/s, "
            f"and keeps {evaluators(workload):.2f} GPUs busy with its evaluation."
        )
        for link, links in LINKS.items():
            print(f"  {link:34s}  ms/step  efficiency   images/s  MB sent  MB/s read")
            for num_gpus in NUM_GPUS:
                print(f"  {num_gpus:>29d} GPUs{_row(workload, num_gpus, links)}")


def _row(workload: Workload, num_gpus: int, links: Links) -> str:
    """sent: by each worker in a step."""
    seconds = step_seconds(workload, num_gpus, links)
    images = num_gpus * workload.local_batch_size / seconds
    sent = all_reduce_bytes(gradient_bytes(workload), num_gpus) / 1e6
    read = read_bytes_per_second(workload, num_gpus, links) / 1e6
    return f"{1e3 * seconds:9.1f}{workload.step_seconds / seconds:12.1%}{images:11,.0f}{sent:9.0f}{read:11,.0f}"


if __name__ == "__main__":
    run_script(main)
