"""`python -m models interpolate | variations | progressive | noise`: the paper's figures of a trained model."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.checks import check_choice, check_whole
from models.cli.sampling import SamplerName

if TYPE_CHECKING:
    from models.samplers import Progress
    from models.trained.model import Images, TrainedModel


@dataclass(frozen=True)
class StripOptions:
    """What all of these commands are told."""

    seed: int = 0
    """All that is left to chance depends on it and an image's index alone."""
    output: Path = Path("samples")
    """Folder for the results, made if missing: a PNG, and a JSON file that says how it was made."""
    animation: Path | None = None
    """Also an animation with a frame for each column; its name ends in .gif or .webp."""
    frame_milliseconds: int = 200
    """How long a frame of the animation is shown."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:0; auto takes a GPU if there is one."""
    tracking_uri: str | None = None
    """Where the MLflow registry is, for a models:/ name; $MLFLOW_TRACKING_URI if not given."""
    step: int | None = None
    """Take the run's checkpoint of this step; the newest complete one if not given."""

    def __post_init__(self) -> None:
        check_whole("frame_milliseconds", self.frame_milliseconds, 10, hint="a hundred is ten frames a second")
        if self.animation is not None:
            from common.pictures import ANIMATIONS

            check_choice("the suffix of animation", self.animation.suffix.lower(), ANIMATIONS)


_DEFAULTS, _NO_IMAGES = StripOptions(), list[Path]()


def interpolate(
    snapshot: Path,
    images: list[Path] = _NO_IMAGES,
    indices: tuple[int, ...] = (0, 1),
    timesteps: tuple[int, ...] = (),
    num_columns: int = 9,
    options: StripOptions = _DEFAULTS,
) -> None:
    """Interpolate between two images: both are diffused to a timestep, mixed there, and denoised (figure 8).

    Writes interpolation.png: the first image, the mixtures from the first to the second, the second.

    Args:
        snapshot: Directory of a run, a checkpoint or a snapshot, or models:/NAME@ALIAS of an MLflow registry.
        images: Image file, folder of them, .npz or .npy; give it again for a further one. Without it the model's own.
        indices: Which two of these images, counted from 0.
        timesteps: How far the images are diffused, in [0, T), a row for each; T / 2 if not given.
        num_columns: Mixtures in a row, the ends included.
    """
    check_whole("num_columns", num_columns, 2)
    if len(indices) != 2:
        raise ValueError(f"indices are {','.join(map(str, indices))}: give two, such as 0,1")
    import numpy as np

    model, (first, second) = _model_and_images(snapshot, images, indices, options)
    rows = _checked(timesteps or (model.num_timesteps // 2,), model)
    weights = [column / (num_columns - 1) for column in range(num_columns)]
    made = []
    with _progress("interpolating", sum(t + 1 for t in rows)) as advance:
        for timestep in rows:
            mixed = model.interpolate(first, second, weights, timestep=timestep, seed=options.seed, progress=advance)
            made.append(np.concatenate((first[None], mixed, second[None])))
    columns = ["first", *(f"{weight:.3g}" for weight in weights), "second"]
    _write("interpolation", np.stack(made), columns, [f"t = {t}" for t in rows], model, options)


def variations(
    snapshot: Path,
    images: list[Path] = _NO_IMAGES,
    index: int = 0,
    timesteps: tuple[int, ...] = (),
    num_columns: int = 8,
    options: StripOptions = _DEFAULTS,
) -> None:
    """Show what an image's latent decides: it is diffused to a timestep once, and denoised several times (figure 7).

    Writes variations.png: the image, and images that share its x_t with it.

    Args:
        snapshot: Directory of a run, a checkpoint or a snapshot, or models:/NAME@ALIAS of an MLflow registry.
        images: Image file, folder of them, .npz or .npy; give it again for a further one. Without it the model's own.
        index: Which of these images, counted from 0.
        timesteps: How far the image is diffused, in [0, T), a row for each; four up to T - 1 if not given.
        num_columns: Variations in a row.
    """
    check_whole("num_columns", num_columns, 1)
    import numpy as np

    model, [image] = _model_and_images(snapshot, images, (index,), options)
    rows = _checked(timesteps or _spread(model.num_timesteps, 4), model)
    made = []
    with _progress("varying", sum(t + 1 for t in rows)) as advance:
        for timestep in rows:
            varied = model.variations(image, num_columns, timestep=timestep, seed=options.seed, progress=advance)
            made.append(np.concatenate((image[None], varied)))
    columns = ["image", *(f"variation {number}" for number in range(1, num_columns + 1))]
    _write("variations", np.stack(made), columns, [f"t = {t}" for t in rows], model, options)


def progressive(
    snapshot: Path,
    num_images: int = 4,
    every: int | None = None,
    sampler: SamplerName = "ddpm",
    num_sampling_steps: int | None = None,
    first_index: int = 0,
    options: StripOptions = _DEFAULTS,
) -> None:
    """Show what the network takes each image for while it is made: the estimates of x_0 on the way (figure 6).

    Writes progressive.png, a row for each image; the last column are the samples.

    Args:
        snapshot: Directory of a run, a checkpoint or a snapshot, or models:/NAME@ALIAS of an MLflow registry.
        num_images: How many images, which are those of `sample`.
        every: Steps from one column to the next, counted from the end; a tenth of all if not given.
        sampler: ddpm is the paper's algorithm 2; ddim and dpm-solver++ need far fewer steps.
        num_sampling_steps: How many of the model's timesteps to visit; all by default.
        first_index: Index of the first image.
    """
    model = _load(snapshot, options)
    with _progress("sampling", num_sampling_steps or model.num_timesteps) as advance:
        seen = model.progressive(
            num_images,
            every=every,
            seed=options.seed,
            sampler=sampler,
            num_sampling_steps=num_sampling_steps,
            first_index=first_index,
            progress=advance,
        )
    rows = [f"image {index}" for index in range(first_index, first_index + num_images)]
    _write("progressive", seen.images, [f"t = {t}" for t in seen.timesteps], rows, model, options)


def noise(
    snapshot: Path,
    images: list[Path] = _NO_IMAGES,
    indices: tuple[int, ...] = (0,),
    timesteps: tuple[int, ...] = (),
    options: StripOptions = _DEFAULTS,
) -> None:
    """Show how noise destroys images: x_t of the forward process at growing t (equation 4).

    Writes noise.png, a row for each image, which stands first. The noise of a row is the same at all timesteps.

    Args:
        snapshot: Directory of a run, a checkpoint or a snapshot, or models:/NAME@ALIAS of an MLflow registry.
        images: Image file, folder of them, .npz or .npy; give it again for a further one. Without it the model's own.
        indices: Which of these images, counted from 0.
        timesteps: The columns, each in [0, T); ten from 0 to T - 1 if not given.
    """
    import numpy as np

    model, chosen = _model_and_images(snapshot, images, indices, options)
    seen = model.noise(chosen, _checked(timesteps, model) or None, seed=options.seed)
    columns = ["image", *(f"t = {t}" for t in seen.timesteps)]
    rows = [f"image {index}" for index in indices]
    _write("noise", np.concatenate((chosen[:, None], seen.images), axis=1), columns, rows, model, options)


def _load(snapshot: Path, options: StripOptions) -> "TrainedModel":
    from models.trained.model import load

    return load(snapshot, options.step, options.device, options.tracking_uri)


def _model_and_images(
    snapshot: Path, images: Sequence[Path], indices: Sequence[int], options: StripOptions
) -> "tuple[TrainedModel, Images]":
    from models.cli.own_images import choose_images

    model = _load(snapshot, options)
    return model, choose_images(model, images, indices, options.seed)


def _checked(timesteps: Sequence[int], model: "TrainedModel") -> list[int]:
    """Before the first of them has cost its time."""
    for timestep in timesteps:
        check_whole("a timestep", timestep, 0, model.num_timesteps - 1)
    return list(timesteps)


def _spread(num_timesteps: int, num_rows: int) -> list[int]:
    """Timesteps in equal distances up to the last, T - 1, without the first, 0."""
    return sorted({max(0, (row + 1) * num_timesteps // num_rows - 1) for row in range(num_rows)})


def _progress(title: str, num_steps: int) -> "AbstractContextManager[Progress]":
    from models.cli.pictures import progress_bar

    return progress_bar(title, num_steps)


def _write(
    name: str,
    images: "Images",
    columns: Sequence[str],
    rows: Sequence[str],
    model: "TrainedModel",
    options: StripOptions,
) -> None:
    """The picture (R, N, H, W, C), the record beside it, the animation if one is wanted, and a line on stdout."""
    from models.cli.pictures import write_frames, write_strips

    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / f"{name}.png"
    write_strips(images, picture)
    record: dict[str, Any] = {"snapshot": str(model.place), "provenance": model.snapshot.provenance}
    record |= {"seed": options.seed, "columns": list(columns), "rows": list(rows)}
    picture.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{picture}: {', '.join(columns)}; rows: {', '.join(rows)}")
    if options.animation is not None:
        options.animation.parent.mkdir(parents=True, exist_ok=True)
        write_frames(images, options.animation, options.frame_milliseconds)
        print(f"{options.animation}: {len(columns)} frames")
