"""The images a run was trained on, found through its run.json."""

from pathlib import Path
from typing import Any

from cluster.run_directory import RUN
from common.files import read_json
from data_pipeline.paths import resolve_path
from data_pipeline.storage.shards import Dataset, open_dataset, reading_options
from eval.errors import BlockedError


def read_run(run_directory: Path) -> dict[str, Any]:
    """The run's run.json. Raises ValueError if it is damaged, FileNotFoundError if there is none."""
    path = run_directory / RUN
    try:
        run = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(run, dict) or not isinstance(run.get("config"), dict) or not run.get("manifest_digest"):
        raise ValueError(f"{path} is not that of a run: it needs config and manifest_digest")
    return run


def open_images(run_directory: Path) -> Dataset:
    """The run's data set.

    Raises BlockedError if it is not there, ValueError if it is no longer the one the run was trained on.
    """
    run = read_run(run_directory)
    settings = run["config"]["data"]
    path = settings["path"]
    try:
        dataset = open_dataset(resolve_path(path), **reading_options(settings))
    except OSError as error:
        raise BlockedError(f"data: {error}") from error
    if dataset.manifest.digest != run["manifest_digest"]:
        raise ValueError(
            f"data set {path} has digest {dataset.manifest.digest[:12]}, the run was trained on one of digest "
            f"{run['manifest_digest'][:12]}; put the original data back"
        )
    return dataset
