"""What a run of 10,000 checkpoints on 1,000 workers costs our own code: processor time and files looked into.

    python benchmarks/scale_load.py [--num-checkpoints 10000] [--num-workers 1000]

Workers are simulated: the order is asked for each of them, a lease by as many threads. Checkpoints are folders without
weights, evaluations results that nobody computed; what lists, reads, keeps and sends them is the real code.
"""

import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cluster.lease import try_lease
from cluster.run_directory import CHECKPOINTS, EVALUATIONS, SPOOL, checkpoint_name
from cluster.storage import COMPLETE
from cluster.tracking.spool import Spool
from common.command_line import run_script
from data_pipeline.order import SampleOrder
from eval.backlog import Selection
from eval.protocol import Protocol, parse_protocol
from eval.service.deleted import DeletedCheckpoints
from eval.service.runner import Runner
from eval.service.service import Service
from eval.service.uploads import LateUploads
from eval.settings import EvaluationSettings
from trainer.checkpoint import CheckpointStore
from trainer.config.presets import PRESETS

DIGEST = "0" * 64
PROTOCOL = parse_protocol("fd_efficientnet_lite0_20_ddim4")
_COUNTED = {"open": "opens", "os.listdir": "listings", "os.scandir": "listings"}


class FileCounts:
    """Files opened and folders listed by this process while `with counts:`."""

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self._counting = False
        sys.addaudithook(self._hook)  # it cannot be taken off again

    def __enter__(self) -> Counter[str]:
        self.counts.clear()
        self._counting = True
        return self.counts

    def __exit__(self, *_: object) -> None:
        self._counting = False

    def _hook(self, event: str, _: tuple[Any, ...]) -> None:
        if self._counting and event in _COUNTED:
            self.counts[_COUNTED[event]] += 1


def make_run(directory: Path, num_checkpoints: int, deleted: bool = False) -> Path:
    """A run with that many checkpoints, each evaluated and sent; deleted: retention has taken them."""
    bound = PROTOCOL.bind(DIGEST)
    (directory / SPOOL).mkdir(parents=True)
    (directory / CHECKPOINTS).mkdir()
    run = {"run": "scale", "uid": "u", "tracking_uri": "sqlite:///none.db", "experiment": "e", "config": {}}
    (directory / "run.json").write_text(json.dumps({**run, "manifest_digest": DIGEST, "num_steps": 10**9}))
    place = {"tracking_uri": run["tracking_uri"], "experiment": run["experiment"], "uid": run["uid"]}
    (directory / SPOOL / "mlflow.json").write_text(json.dumps({"run_id": "r", **place}))
    lines = []
    for number in range(1, num_checkpoints + 1):
        name = checkpoint_name(number, "aaaa")
        lines.append(json.dumps({"type": "checkpoint", "step": number, "name": name, "time": 1.0}))
        if not deleted:
            (directory / CHECKPOINTS / name).mkdir()
            (directory / CHECKPOINTS / name / COMPLETE).write_text("{}")
        _evaluated(directory, name, number, bound)
    (directory / SPOOL / "train.jsonl").write_text("\n".join(lines) + "\n")
    _sent(directory / SPOOL / "train.jsonl")
    return directory


def _evaluated(directory: Path, name: str, step: int, bound: Protocol) -> None:
    described = {"checkpoint": name, "step": step, "protocol": bound.describe()}
    result = {"status": "done", **described, "value": 1.0, "attempts": 1, "time": 1.0}
    (directory / EVALUATIONS / name).mkdir(parents=True)
    (directory / EVALUATIONS / name / f"{bound.digest}.json").write_text(json.dumps(result))
    spool = directory / SPOOL / f"eval-{name}-{bound.digest[:12]}.jsonl"
    spool.write_text(json.dumps({"type": "metrics", "step": step, "values": {"eval/x": 1.0}, "time": 1.0}) + "\n")
    _sent(spool)


def _sent(spool: Path) -> None:
    spool.with_suffix(".acknowledged.json").write_text(json.dumps({"bytes": spool.stat().st_size}))


def operations(folder: Path, num_checkpoints: int, num_workers: int) -> dict[str, Callable[[], object]]:
    """What is done again and again, by name; the second call of each is what it costs from then on."""
    run, gone = folder / "runs" / "run", make_run(folder / "gone", num_checkpoints, deleted=True)
    make_run(run, num_checkpoints)
    config = PRESETS["demo"]()
    store = CheckpointStore(run, config, None, {})
    keep = dataclasses.replace(config.checkpoint, keep_every_steps=1)
    service = Service(run.parent, [PROTOCOL], Selection(), Runner(EvaluationSettings(), upload=lambda directory: None))
    uploads = LateUploads(lambda directory: None)
    order = SampleOrder([1000] * num_workers, 0, 16 * num_workers, DIGEST)
    ranks = iter(range(10**9))

    def one_worker() -> np.ndarray:
        return order.samples(order.counters(10**6, next(ranks) % num_workers, num_workers))

    def reopen() -> None:
        spool = Spool(run, "train")
        spool.metrics({"train/loss": 1.0}, 1)
        spool.close()
        _sent(run / SPOOL / "train.jsonl")

    return {
        "order: the images of one worker's step": one_worker,
        f"lease: {num_workers} ask at once": lambda: _race(folder / "lease.json", num_workers),
        "retention after a save": lambda: store._apply_retention(keep),
        "backlog: what is due": service.due,
        "backlog: what retention took, at a start": lambda: DeletedCheckpoints(gone).skipped([PROTOCOL], Selection()),
        "spool: is anything to be sent": lambda: uploads.send(run),
        "spool: opened after a restart": reopen,
    }


def _race(path: Path, num_workers: int) -> None:
    """As many threads ask for one lease; exactly one gets it."""
    leases, barrier = [], threading.Barrier(num_workers)

    def ask() -> None:
        barrier.wait()
        leases.append(try_lease(path))

    threads = [threading.Thread(target=ask) for _ in range(num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = [lease for lease in leases if lease is not None]
    owner.release()


def measure(folder: Path, num_checkpoints: int, num_workers: int) -> dict[str, dict[str, float]]:
    """Processor seconds and files looked into of the second call of each operation."""
    counts, figures = FileCounts(), {}
    for name, operation in operations(folder, num_checkpoints, num_workers).items():
        operation()
        started = time.process_time()
        with counts as counted:
            operation()
        seconds = time.process_time() - started
        figures[name] = {"seconds": seconds, "opens": counted["opens"], "listings": counted["listings"]}
    return figures


def main(num_checkpoints: int = 10_000, num_workers: int = 1000) -> None:
    """Print a table.

    Args:
        num_checkpoints: of the run, each evaluated
        num_workers: of the run
    """
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), num_checkpoints, num_workers)
    print(f"{'':42s} {'CPU ms':>9s} {'opens':>8s} {'listings':>8s}")
    for name, found in figures.items():
        print(f"{name:42s} {1000 * found['seconds']:9.1f} {found['opens']:8.0f} {found['listings']:8.0f}")
    print(json.dumps({"figures": figures, "num_cores": os.cpu_count()}))


if __name__ == "__main__":
    run_script(main)
