"""What to do next with a run, as sentences and as commands that can be pasted."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from eval.metrics.metric import METRICS

_MUCH_INITIALISATION = 0.01
_MANY_SAMPLES = 10_000

Step = dict[str, str]
"""{"text": a sentence, "command": or ""}"""


def next_steps(run: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Step]:
    """The most useful first. run: of `collect_run`; summary: of `summarise`."""
    folder, last, best = run["directory"], summary["last"], summary["best"]
    steps = []
    if not run["finished"]:
        steps.append(_step("The run is not finished: the command that started it goes on from its newest checkpoint."))
    if last is None:
        steps.append(_step("Measure the newest checkpoint.", "eval", "run", folder))
    else:
        steps += _about_numbers(run, last, best, summary["rows"])
    sample: tuple[str, ...] = ("models", "sample", folder, "--output", "samples")
    if last and best and best["step"] != last["step"]:
        sample = (*sample, "--step", str(best["step"]))
    steps.append(_step("Draw samples.", *sample))
    if last and run["neighbours"] is None and METRICS[last["protocol"]["metric"]].looks_at != "data":
        steps.append(
            _step("Does it draw, or remember? Compare samples with their nearest training images.", *_neighbours(run))
        )
    return steps


def _about_numbers(run: Mapping[str, Any], last: Any, best: Any, rows: Sequence[Any]) -> list[Step]:
    steps = []
    share = last["initial_weight_share"]
    if share is not None and share > _MUCH_INITIALISATION:
        steps.append(
            _step(f"{100 * share:.0f} % of the averaged weights are still the initialisation: train longer, or average "
                  "over less (ema.decay).")
        )  # fmt: skip
    elif run["finished"] and len(rows) > 1 and _still_improves(rows):
        steps.append(
            _step("The number still improves beyond its interval: train longer, by the same command with a larger "
                  "--train.num_steps.")
        )  # fmt: skip
    if not run["finished"] or best["step"] == last["step"]:
        pass
    elif _apart(best, last):
        steps.append(
            _step(f"Step {best['step']:,} was better than the last, beyond both intervals: take that checkpoint.")
        )
    protocol = last["protocol"]
    if protocol["extractor"] != "inception" or protocol["num_samples"] < _MANY_SAMPLES:
        steps.append(
            _step("This protocol is for comparing runs with each other. For a number beside published ones: "
                  "50,000 samples and Inception's features.",
                  "eval", "run", run["directory"], "--protocol", "fid_clean_50k")
        )  # fmt: skip
    return steps


def _still_improves(rows: Sequence[Any]) -> bool:
    """Whether the last number is better than the one before, and the intervals of both do not meet."""
    before, last = rows[-2:]
    better = last["value"] < before["value"] if METRICS[last["protocol"]["metric"]].lower_is_better else (
        last["value"] > before["value"]
    )  # fmt: skip
    return better and _apart(before, last)


def _apart(one: Any, other: Any) -> bool:
    """Whether two numbers have intervals that do not meet."""
    a, b = one.get("interval"), other.get("interval")
    return bool(a and b) and (a["high"] < b["low"] or b["high"] < a["low"])


def _neighbours(run: Mapping[str, Any]) -> tuple[str, ...]:
    return ("eval", "neighbours", run["directory"])


def _step(text: str, *command: str) -> Step:
    return {"text": text, "command": shlex.join(["rayddpm", *command]) if command else ""}
