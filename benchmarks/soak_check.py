"""Whether a run that was killed again and again is the run it would have been: on storage and in MLflow."""

import statistics
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from mlflow import MlflowClient

from cluster.run_directory import SPOOL, complete_checkpoints, step_of
from cluster.storage import verify
from cluster.tracking.spool import read_events, read_metrics
from common.files import read_json
from data_pipeline.ledger import audit
from data_pipeline.storage.shards import open_dataset
from eval.results import DONE, all_results

WEIGHTS = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def differences(directory: Path, unbroken: Path, data: Path, num_steps: int, uri: str) -> list[str]:
    """What is wrong with a run of `num_steps` steps, one sentence each; [] if nothing is.

    directory, unbroken: the run that was killed, and the same run left in peace. data: the packed images.
    """
    return [
        *_against_unbroken(directory, unbroken, num_steps),
        *_in_ledger(directory, data, num_steps),
        *_in_evaluations(directory),
        *_in_mlflow(directory, uri),
    ]


def trained_share(directory: Path, wall_seconds: float) -> float:
    """Steps x their median time / the time that passed: starts, and steps done again, count as lost."""
    times = [seconds for _, _, seconds in read_metrics(directory).get("train/loss", [])]
    if len(times) < 2:
        raise ValueError(f"{directory} has trained {len(times)} steps in {wall_seconds:.0f} s: give it more minutes")
    return len(times) * statistics.median(b - a for a, b in pairwise(times)) / wall_seconds


def _against_unbroken(directory: Path, unbroken: Path, num_steps: int) -> Iterator[str]:
    ours, theirs = ([point[:2] for point in read_metrics(run).get("train/loss", [])] for run in (directory, unbroken))
    if [step for step, _ in ours] != list(range(1, num_steps + 1)):
        yield f"losses: {len(ours)} steps are in the spool, {num_steps} were trained"
    unlike = [step for (step, loss), (_, other) in zip(ours, theirs, strict=False) if loss != other]
    if unlike or len(ours) != len(theirs):
        yield f"losses: {len(unlike)} of {len(theirs)} differ from the unbroken run's, the first at step {unlike[:1]}"
    last, expected = (verify(complete_checkpoints(run)[-1])["files"] for run in (directory, unbroken))
    yield from (f"{name}: other bits than the unbroken run's" for name in WEIGHTS if last[name] != expected[name])


def _in_ledger(directory: Path, data: Path, num_steps: int) -> Iterator[str]:
    with open_dataset(data) as dataset:
        try:
            audit(directory / "ledger", dataset, num_steps)
        except ValueError as error:
            yield f"ledger: {error}"


def _in_evaluations(directory: Path) -> Iterator[str]:
    """One checkpoint a step, one number a checkpoint, said once."""
    checkpoints = complete_checkpoints(directory)
    for step, number in Counter(map(step_of, checkpoints)).items():
        if number > 1:
            yield f"checkpoints: {number} at step {step}"
    results = Counter(result["checkpoint"] for result in all_results(directory) if result["status"] == DONE)
    for checkpoint in checkpoints:
        if results[checkpoint.name] != 1:
            yield f"evaluations: {checkpoint.name} has {results[checkpoint.name]} results"
    said: Counter[str] = Counter()
    for path in (directory / SPOOL).glob("eval-*.jsonl"):
        said.update(str(event["step"]) for event, _ in read_events(path) if event["type"] == "metrics")
    yield from (f"evaluations: the number of step {step} was said {n} times" for step, n in said.items() if n > 1)


def _in_mlflow(directory: Path, uri: str) -> Iterator[str]:
    """Every point of the spool, once, with its step and time, in the only run there is."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(read_json(directory / "run.json")["experiment"])
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    if len(runs) != 1:
        yield f"MLflow: {len(runs)} runs"
        return
    spooled = read_metrics(directory)
    if surplus := runs[0].data.metrics.keys() - spooled.keys():
        yield f"MLflow: {sorted(surplus)} are not in the spool"
    for name, points in spooled.items():
        history = client.get_metric_history(runs[0].info.run_id, name)
        sent = sorted((metric.step, metric.value, metric.timestamp) for metric in history)
        if sent != [(step, value, int(seconds * 1000)) for step, value, seconds in points]:
            yield f"MLflow: {name} has {len(sent)} points, the spool {len(points)}, and they are not the same"
