"""`python -m eval likelihood`: the likelihood of a packed data set under a snapshot or a run's checkpoint."""

import json
from pathlib import Path
from typing import Literal

from cluster.run_directory import RUN


def likelihood(
    snapshot: Path,
    data: str,
    step: int | None = None,
    num_images: int | None = None,
    num_sampling_steps: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    output: Path | None = None,
) -> None:
    """Bound the negative log-likelihood of a packed data set's images, in bits per dimension, with its terms.

    Prints one JSON object, as `python -m models likelihood` does for images in a folder or an array.

    Args:
        snapshot: directory of a snapshot, of a checkpoint, or of a run
        data: the packed data set, a folder or an address, or a demo set such as demo:digits
        step: which checkpoint of a run; the newest if not given
        num_images: how many images, from the first; all if not given
        num_sampling_steps: bound the shorter chain that visits this many evenly spaced timesteps; all if not given
        seed: noise of image i depends on the seed and i alone
        batch_size: images measured at a time, which bounds the memory; fewer of large images if not given
        device: where to compute; auto takes a GPU if there is one
        output: directory for likelihood.json and rate_distortion.png, made if missing
    """
    from data_pipeline.paths import resolve_path
    from data_pipeline.storage.shards import open_dataset
    from eval.sampling.likelihood import dataset_bounds
    from eval.settings import EvaluationSettings
    from models import likelihood_report
    from models.cli.pictures import progress_bar
    from models.snapshot import load_snapshot

    settings = EvaluationSettings(device=device)
    settings.prepare_process()
    loaded = load_snapshot(snapshot_folder(snapshot, step), settings.torch_device())
    with open_dataset(resolve_path(data)) as dataset:
        bounds, timesteps = dataset_bounds(
            loaded, dataset, num_images, num_sampling_steps, seed, batch_size, progress_bar
        )
    report = likelihood_report.summary(bounds)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        likelihood_report.write(output, report, bounds, timesteps)
    print(json.dumps(report, indent=2))


def snapshot_folder(path: Path, step: int | None) -> Path:
    """The folder itself, or of a run the newest complete checkpoint, or the one at `step`.

    Raises FileNotFoundError if the run has no such checkpoint, ValueError for a step without a run.
    """
    from eval.backlog import checkpoints_of

    if not (path / RUN).is_file():
        if step is not None:
            raise ValueError(f"step is {step}, but {path} holds no run.json: give the folder of a run, or leave it out")
        return path
    checkpoints = dict(checkpoints_of(path))
    if not checkpoints or (step is not None and step not in checkpoints):
        known = ", ".join(str(known) for known in checkpoints) or "none"
        wanted = "no complete checkpoint" if step is None else f"no complete checkpoint at step {step}"
        raise FileNotFoundError(f"{path} has {wanted}; there are: {known}")
    return checkpoints[max(checkpoints) if step is None else step]
