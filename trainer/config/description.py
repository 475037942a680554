"""What MLflow's pages read of a run besides its params: who, with what, on which data, and a description."""

import getpass
from typing import Any

from cluster.local import in_ray_job
from data_pipeline.storage.address import is_remote, shown_address
from trainer.config.plan import Plan


def tags_for_mlflow(plan: Plan, run: dict[str, Any]) -> dict[str, str]:
    """run: the content of its run.json. The description is given once: people write their own over it."""
    tags = {"mlflow.source.name": "rayddpm train", "mlflow.source.type": "JOB" if in_ray_job() else "LOCAL"}
    if run["git_commit"] != "unknown":
        tags["mlflow.source.git.commit"] = run["git_commit"]
    if user := _user():
        tags["mlflow.user"] = user
    if run["num_attempts"] == 1:
        tags["mlflow.note.content"] = _description(plan, run)
    return tags


def dataset_for_mlflow(plan: Plan) -> dict[str, Any]:
    """Name, digest and source of the data set, and what it holds."""
    manifest, path = plan.manifest, _shown_path(plan)
    return {
        "name": path.rstrip("/").rpartition("/")[2],
        "digest": manifest.digest,
        "source": path,
        "num_images": manifest.num_samples,
        "image_size": manifest.image_size,
        "image_channels": manifest.image_channels,
    }


def _description(plan: Plan, run: dict[str, Any]) -> str:
    """Markdown."""
    config, manifest = plan.config, plan.manifest
    shape = f"{manifest.image_size} x {manifest.image_size} x {manifest.image_channels}"
    return f"""A denoising diffusion model (Ho et al. 2020) of {run["num_parameters"]:,} parameters.

- **data**: {manifest.num_samples:,} images of {shape} from `{_shown_path(plan)}`, digest `{manifest.digest[:12]}`
- **training**: {config.train.num_steps:,} steps of {config.train.global_batch_size} images, \
learning rate {config.optim.learning_rate:g}, EMA decay {config.ema.decay:g}, {config.train.precision}
- **folder**: `{plan.directory}`

`train/loss` is the training loss. `eval/NAME` is the distance to the data under protocol NAME; samples of each
evaluated checkpoint, all from the same seeds, are in the artifacts under `samples`.
Numbers, curves and pictures on one page: `rayddpm eval report {plan.directory}`
"""


def _shown_path(plan: Plan) -> str:
    path = str(plan.config.data.path)
    return shown_address(path) if is_remote(path) else path


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an id without a name, as in containers
        return ""
