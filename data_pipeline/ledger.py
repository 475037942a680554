"""The ledger: what every worker was really given, step by step, and the proof that it was each sample once.

A worker writes a line before it trains on a batch, so a completed step has the lines of all its workers. An attempt
that begins at step s takes the place of all that was recorded from s on: those updates died with their processes.
"""

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.loader import Batch
from data_pipeline.order import SampleOrder
from data_pipeline.storage.dataset import Dataset

_OWN_NAME = re.compile(r"attempt-(\d+)-rank-(\d+)\.jsonl")


class Entry(NamedTuple):
    """One sample that one worker was given."""

    counter: int
    key: str
    crc32: int
    """Of the decoded pixels, (H, W, C) uint8 in C order."""


class Audit(NamedTuple):
    """What an audit that found nothing wrong has seen."""

    num_steps: int
    num_samples: int
    attempts: dict[int, tuple[int, int]]
    """attempt -> (first step, number of workers)"""


def next_attempt(folder: Path) -> int:
    """The number of the attempt that begins now; one process asks, and tells the others."""
    return max((_place(path)[0] for path in _files(folder)), default=0) + 1


def recorded(
    stream: Iterable[Batch],
    folder: Path,
    attempt: int,
    rank: int,
    world_size: int,
    dataset: Dataset,
    order: SampleOrder,
) -> Iterator[Batch]:
    """The same batches, each written to the ledger before it is handed on."""
    folder.mkdir(parents=True, exist_ok=True)
    run = {"seed": order.seed, "global_batch_size": order.global_batch_size, "data_digest": order.digest}
    with open(folder / f"attempt-{attempt:04d}-rank-{rank}.jsonl", "x", encoding="utf-8") as file:
        for number, batch in enumerate(stream):
            if number == 0:
                header = {**run, "start_step": batch.step, "world_size": world_size}
                file.write(json.dumps(header) + "\n")
            counters = batch.counters.numpy()
            pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
            line = {
                "step": batch.step,
                "counters": counters.tolist(),
                "keys": [dataset.key(int(sample)) for sample in order.samples(counters)],
                "crc32": [zlib.crc32(image.tobytes()) for image in pixels],
            }
            file.write(json.dumps(line) + "\n")
            file.flush()
            yield batch


def read_ledger(folder: Path) -> dict[int, list[Entry]]:
    """Step -> samples of all workers, by the attempt that the surviving weights come from."""
    return _read(folder)[0]


def audit(folder: Path, dataset: Dataset, num_steps: int | None = None) -> Audit:
    """Check a ledger against the data set and the order that its seed gives.

    num_steps: how many steps of the run to check; None: all that are recorded.
    Raises FileNotFoundError if there is no ledger, ValueError naming the first step that is not as ordered.
    """
    steps, runs, attempts = _read(folder)
    if len({json.dumps(run) for run in runs}) != 1:
        raise ValueError(f"{folder} holds the ledgers of {len(runs)} runs that differ: {runs}")
    (run,) = {json.dumps(run): run for run in runs}.values()
    if run["data_digest"] != dataset.manifest.digest:
        raise ValueError(f"the ledger is of data set {run['data_digest']}, this one is {dataset.manifest.digest}")
    global_batch_size = run["global_batch_size"]
    order = SampleOrder(dataset.manifest.shard_sizes, run["seed"], global_batch_size, dataset.manifest.digest)
    num_steps = max(steps) + 1 if num_steps is None else num_steps
    for step in range(num_steps):
        _check_step(step, sorted(steps.get(step, [])), dataset, order)
    return Audit(num_steps, num_steps * global_batch_size, attempts)


def _check_step(step: int, entries: list[Entry], dataset: Dataset, order: SampleOrder) -> None:
    expected = order.counters(step)
    found = [entry.counter for entry in entries]
    if found != sorted(expected.tolist()):
        missing, extra = sorted(set(expected.tolist()) - set(found)), sorted(set(found) - set(expected.tolist()))
        repeated = sorted({counter for counter in found if found.count(counter) > 1})
        raise ValueError(f"step {step} is not as ordered: missing {missing}, foreign {extra}, repeated {repeated}")
    samples = order.samples(np.array(found, dtype=np.int64))
    for entry, sample in zip(entries, samples.tolist(), strict=True):
        if entry.key != dataset.key(sample) or entry.crc32 != zlib.crc32(dataset.read(sample).tobytes()):
            raise ValueError(
                f"step {step}, counter {entry.counter}: the worker was given {entry.key!r} with other pixels or in "
                f"the place of {dataset.key(sample)!r}"
            )


def _read(folder: Path) -> tuple[dict[int, list[Entry]], list[dict[str, Any]], dict[int, tuple[int, int]]]:
    """Steps, each file's run, each attempt's (first step, number of workers)."""
    # A worker that died before its first batch has an empty file.
    begun = {path: lines for path in _files(folder) if (lines := _lines(path))}
    if not begun:
        raise FileNotFoundError(f"{folder} holds no ledger: train with --data.ledger true")
    headers = [header for header, *_ in begun.values()]
    attempts = {_place(path)[0]: (found[0]["start_step"], found[0]["world_size"]) for path, found in begun.items()}
    steps: dict[int, list[Entry]] = defaultdict(list)
    for attempt in sorted(attempts):
        for step in [step for step in steps if step >= attempts[attempt][0]]:
            del steps[step]
        for found in (found for path, found in begun.items() if _place(path)[0] == attempt):
            for line in found[1:]:
                steps[line["step"]] += map(Entry, line["counters"], line["keys"], line["crc32"])
    names = ("seed", "global_batch_size", "data_digest")
    return dict(steps), [{name: header[name] for name in names} for header in headers], attempts


def _files(folder: Path) -> list[Path]:
    """The ledger's own files: a user may keep copies beside them."""
    return sorted(path for path in folder.glob("attempt-*-rank-*.jsonl") if _OWN_NAME.fullmatch(path.name))


def _place(path: Path) -> tuple[int, int]:
    """(attempt, rank)"""
    found = _OWN_NAME.fullmatch(path.name)
    assert found
    return int(found[1]), int(found[2])


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines; a last one torn by a crash is left out."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if line[-1] == "\n":
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path} is damaged in line {number}, which is not JSON: {error}") from error
    return found
