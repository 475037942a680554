"""Commands of `python -m eval` that keep things for later: weights, reference statistics, registered models."""

import sys
from pathlib import Path

from cluster.run_directory import RUN
from common.checks import check_whole
from eval.cli.jobs import DEFAULT_PROTOCOL, check_run

_DEFAULT_ALIASES = ["best"]


def register(
    run_directory: Path, protocol: str = DEFAULT_PROTOCOL, name: str = "rayddpm", alias: list[str] = _DEFAULT_ALIASES
) -> None:
    """Register the run's best checkpoint under a protocol in the MLflow model registry.

    Args:
        run_directory: folder of the run, with its run.json
        protocol: by which numbers the best is chosen
        name: registered model to which a version is added
        alias: alias that points to it from now on; give the option again for each further one
    """
    from common.files import read_json
    from eval.registry import best_result
    from eval.registry import register as register_result

    check_run(run_directory)
    best = best_result(run_directory.resolve(), protocol)
    uri = register_result(run_directory.resolve(), best, name, alias)
    print(f"{uri} is step {best['step']}, {best['protocol']['name']} = {best['value']:.4g}")
    registry = read_json(run_directory / RUN)["tracking_uri"]
    print(f"python -m models sample models:/{name}@{alias[0]} --tracking-uri {registry}")


def fetch_weights(weights_folder: Path | None = None, url: str | None = None) -> None:
    """Download the published Inception network (96 MB), checked by its sha256; a broken download goes on.

    Args:
        weights_folder: where to keep it; $RAYDDPM_WEIGHTS or the user's cache if not given
        url: where to get it; its publisher's address if not given
    """
    from eval.metrics import weights
    from eval.metrics.fetch import INCEPTION_URL, fetch

    path = weights.weights_folder(weights_folder) / weights.INCEPTION_FILE
    fetched = fetch(path, url or INCEPTION_URL, progress=_show_progress)
    print(f"fetched {path}" if fetched else f"{path} is there already")


def import_reference(file: Path, storage: Path, *, num_images: int, protocol: str = "fid_clean_50k") -> None:
    """Keep published reference statistics (clean-fid npz) for the runs of a storage folder; print their protocol.

    Args:
        file: the npz with mu and sigma
        storage: folder that holds the runs
        num_images: how many images the statistics were made of
        protocol: the Fréchet distance they belong to
    """
    from eval.metrics.reference import ReferenceCache, reference_folder
    from eval.protocol import parse_protocol

    check_whole("num_images", num_images, 2)
    print(ReferenceCache(reference_folder(storage)).import_npz(file, parse_protocol(protocol), num_images).name)


def _show_progress(num_bytes: int, total: int | None) -> None:
    share = f" of {total / 1e6:.0f}" if total else ""
    print(f"\r{num_bytes / 1e6:.0f}{share} MB", end="\n" if num_bytes == total else "", file=sys.stderr, flush=True)
