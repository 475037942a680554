"""What a run took: time, workers and hardware of its training, time of its evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any

Points = Sequence[tuple[int, float, float]]


def cost_of(
    metrics: Mapping[str, Points], tags: Mapping[str, str], config: Mapping[str, Any], evaluations: Sequence[Any]
) -> dict[str, Any]:
    """Seconds of training and evaluation; worker-seconds, in which each worker counts; the hardware's name or None.

    Steps that were trained again after a resume count once: a spool holds each step's point once.
    """
    seconds = {step: value for step, value, _ in metrics.get("train/step_seconds", ())}
    workers = {step: value for step, value, _ in metrics.get("system/num_workers", ())}
    default = config.get("workers.num_workers") or 1
    training = worker_seconds = 0.0
    previous = 0
    for step in sorted(seconds):
        took = seconds[step] * (step - previous)
        training, worker_seconds = training + took, worker_seconds + took * workers.get(step, default)
        previous = step
    return {
        "training_seconds": training if seconds else None,
        "worker_seconds": worker_seconds if seconds else None,
        "evaluation_seconds": sum(row["wall_seconds"] for row in evaluations),
        "hardware": tags.get("hardware"),
        "unit": "GPU" if config.get("workers.use_gpu") else "worker",
    }


def format_seconds(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`: the two largest units that say something."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def format_worker_time(cost: Mapping[str, Any]) -> str:
    """Such as `0.31 worker-hours` or `1,200 GPU-hours`."""
    hours = cost["worker_seconds"] / 3600
    number = f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"
    return f"{number} {cost['unit']}-hours"
