"""The share of time that trains while workers fail: in closed form, and as a run simulated event by event.

    python benchmarks/failures.py [--between-failures-seconds 180]

A failure of any worker stops all; they start again and do again what no committed checkpoint holds.
"""

import math
import random
from dataclasses import dataclass, replace

from common.checks import check_above_zero, check_at_least
from common.command_line import run_script

GOAL = 0.97


@dataclass(frozen=True)
class Failures:
    """What the share of time that trains depends on."""

    between_failures_seconds: float
    """F: mean time between two failures of all workers together, which are independent of each other."""
    restart_seconds: float
    """R: from a failure to the start of the next step."""
    checkpoint_every_seconds: float
    """C: training between two checkpoints."""
    stall_seconds: float = 0.0
    """S: for how long a checkpoint stops training, to copy it to host memory."""
    write_seconds: float = 0.0
    """W: from that copy until the checkpoint is committed, while training goes on."""

    def __post_init__(self) -> None:
        check_above_zero("failures", self, "between_failures_seconds", "checkpoint_every_seconds")
        check_at_least("failures", self, 0, "restart_seconds", "stall_seconds", "write_seconds")


def expected_share(given: Failures) -> float:
    """Time that trained and counts / time = (C / F) exp(-(R + W) / F) / (exp((C + S) / F) - 1).

    Between a start and the next failure lie X seconds, exponential with mean F. In them K checkpoints are committed,
    the k-th if X >= k (C + S) + W, so E[K] = exp(-W / F) / (exp((C + S) / F) - 1), each with C seconds of training.
    A restart that must itself pass without a failure takes F (exp(R / F) - 1) on average, so a cycle F exp(R / F).
    To first order: 1 - (R + W + C / 2) / F - S / C.
    """
    mean = given.between_failures_seconds
    period = given.checkpoint_every_seconds + given.stall_seconds
    delays = given.restart_seconds + given.write_seconds
    return given.checkpoint_every_seconds / mean * math.exp(-delays / mean) / math.expm1(period / mean)


def simulated_share(given: Failures, num_failures: int, seed: int) -> float:
    """The same from a run that is played through: its checkpoints one by one, its failures drawn at random."""
    draw = random.Random(seed)
    clock = trained = 0.0
    failure = draw.expovariate(1 / given.between_failures_seconds)
    for _ in range(num_failures):
        while clock + given.checkpoint_every_seconds + given.stall_seconds + given.write_seconds <= failure:
            clock += given.checkpoint_every_seconds + given.stall_seconds
            trained += given.checkpoint_every_seconds
        clock = failure
        failure += draw.expovariate(1 / given.between_failures_seconds)
        while failure < clock + given.restart_seconds:
            clock, failure = failure, failure + draw.expovariate(1 / given.between_failures_seconds)
        clock += given.restart_seconds
    return trained / clock


def best_interval_seconds(given: Failures) -> float:
    """The C that trains most, to a hundredth: the share rises up to it and falls after it."""
    low, high = 1e-3, 10 * given.between_failures_seconds
    while high > 1.01 * low:
        left, right = low * (high / low) ** (1 / 3), low * (high / low) ** (2 / 3)
        shares = [expected_share(replace(given, checkpoint_every_seconds=each)) for each in (left, right)]
        low, high = (left, high) if shares[0] < shares[1] else (low, right)
    return high


def allowed_restart_seconds(given: Failures, goal: float = GOAL) -> float:
    """The longest R that reaches the goal with this C; negative if none does: the share goes as exp(-R / F)."""
    share = expected_share(replace(given, restart_seconds=0.0))
    return given.between_failures_seconds * math.log(share / goal)


MEASURED = {
    "local launcher": Failures(180.0, 3.9, 10.0, stall_seconds=0.07, write_seconds=0.6),
    "Ray": Failures(180.0, 8.0, 10.0, stall_seconds=0.07, write_seconds=0.6),
    "local launcher, capture through pinned memory": Failures(180.0, 3.9, 10.0, stall_seconds=0.011, write_seconds=0.6),
}
"""Restarts: benchmarks/recovery.py, two workers on two cores. Stall: the step after a checkpoint of 572 MB on an H100
takes 96 % longer than one of 73 ms. Write: 572 MB at 1 GB/s. Pinned memory: 572 MB at 50 GB/s."""


def main(between_failures_seconds: float = 180.0, num_failures: int = 20_000) -> None:
    """What is left of the time, with the best interval of checkpoints.

    Args:
        between_failures_seconds: mean time between two failures of all workers together
        num_failures: in each simulated run
    """
    print(f"{'':46s} {'checkpoint every':>16s} {'share':>7s} {'simulated':>9s} {'restart allowed for 97 %':>24s}")
    for name, measured in MEASURED.items():
        given = replace(measured, between_failures_seconds=between_failures_seconds)
        # A checkpoint is written before the next one begins.
        every = max(best_interval_seconds(given), given.write_seconds)
        given = replace(given, checkpoint_every_seconds=every)
        share, simulated = expected_share(given), simulated_share(given, num_failures, seed=0)
        allowed = allowed_restart_seconds(given)
        print(f"{name:46s} {every:14.1f} s {share:7.1%} {simulated:9.1%} {allowed:22.1f} s")


if __name__ == "__main__":
    run_script(main)
