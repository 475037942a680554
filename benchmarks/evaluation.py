"""Quality numbers against clean-fid, torch-fidelity and pytorch-fid: same images, same weights, one run, one core.

    python benchmarks/evaluation.py [--num-images 32] [--rounds 7] [--dimension 2048]

The published Inception file is not needed: its architecture is built from pytorch-fid's own layers with random weights
(batch norms set so that features vary) and given to all four, as TorchScript of the published interface to clean-fid
and ours, as a state dict to the other two. Peers read a folder of PNGs, as they must; ours takes the 8-bit images as
the sampler leaves them and is watched: a file opened for writing meanwhile ends the benchmark.
"""

import contextlib
import io
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inception_stand_in import MODES, Layers, Networks, pictures
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.command_line import run_script
from eval.metrics.statistics import FeatureStatistics, statistics_distance
from models.config import ModelConfig
from models.networks.table import build_on_meta
from trainer.config.presets import PRESETS

BATCHES = {"clean-fid": 32, "torch-fidelity": 64, "pytorch-fid": 50}
"""Each library's default."""
SMALL_BATCH = 16
"""Ours, and what makes clean-fid faster on a core than its default does: its activations stay in the cache."""

BFLOAT16 = "ours, clean, bfloat16"


def contestants(networks: Networks, images: torch.Tensor, files: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Name -> a function that works out all features (N, 2048)."""
    from cleanfid.fid import get_folder_features
    from pytorch_fid.fid_score import get_activations
    from torch_fidelity.datasets import ImagesPathDataset
    from torch_fidelity.utils import get_featuresdict_from_dataset

    paths = sorted(str(path) for path in files.glob("*.png"))

    def clean_fid(mode: str, batch_size: int = BATCHES["clean-fid"]) -> np.ndarray:
        settings: dict[str, Any] = {"num_workers": 0, "batch_size": batch_size, "device": torch.device("cpu")}
        return get_folder_features(str(files), networks.clean_fid[mode], mode=mode, verbose=False, **settings)

    def fidelity() -> np.ndarray:
        dataset = ImagesPathDataset(paths)
        found = get_featuresdict_from_dataset(
            dataset, networks.torch_fidelity, BATCHES["torch-fidelity"], False, True, False
        )
        return found["2048"].numpy()

    found: dict[str, Callable[[], np.ndarray]] = {}
    for mode in MODES:
        found[f"ours, {mode}"] = lambda mode=mode: networks.ours[mode](images).numpy()  # type: ignore[misc]
        found[f"clean-fid, {mode}"] = lambda mode=mode: clean_fid(mode)  # type: ignore[misc]
    found[f"clean-fid, clean, batches of {SMALL_BATCH}"] = lambda: clean_fid("clean", SMALL_BATCH)
    found["torch-fidelity"] = fidelity
    found["pytorch-fid"] = lambda: get_activations(
        paths, networks.pytorch_fid, min(BATCHES["pytorch-fid"], len(paths)), num_workers=0
    )
    if torch.backends.cpu.get_cpu_capability() == "AVX512":  # others compute it many times more slowly than float32
        found[BFLOAT16] = lambda: networks.ours_bfloat16["clean"](images).numpy()
    return found


class WriteWatch:
    """Names of files that this process opens for writing while `watching`."""

    def __init__(self) -> None:
        self.opened: list[str] | None = None
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.opened is not None and event == "open" and any(letter in str(arguments[1]) for letter in "wax+"):
            self.opened.append(str(arguments[0]))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.opened = []
        try:
            yield
            if self.opened:
                raise AssertionError(f"ours wrote {self.opened}")
        finally:
            self.opened = None


def compare_features(networks: Networks, images: torch.Tensor, files: Path, rounds: int) -> dict[str, Any]:
    """Images/s of each contestant, the median of interleaved rounds, and how far apart features are.

    Ratios are medians too, of a round's images/s against those of clean-fid in the same round.
    """
    makers, watch = contestants(networks, images, files / "all"), WriteWatch()
    features: dict[str, np.ndarray] = {}
    rates: dict[str, list[float]] = {name: [] for name in makers}
    # A few images first, unmeasured: they pay for TorchScript's and oneDNN's preparations.
    for contest in [contestants(networks, images[:SMALL_BATCH], files / "first"), *[makers] * rounds]:
        for name, make in contest.items():
            guard = watch.watching() if name.startswith("ours") else contextlib.nullcontext()
            with guard, warnings.catch_warnings(), quiet():
                warnings.simplefilter("ignore")
                started = time.perf_counter()
                features[name] = make()
                elapsed = time.perf_counter() - started
            if contest is makers:
                rates[name].append(len(images) / elapsed)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\nfeatures of {len(images)} images, {platform.machine()}, 1 thread, torch {torch.__version__}")
    for name, rate in medians.items():
        mode = "legacy_tensorflow" if "legacy" in name or name == "torch-fidelity" else "clean"
        other = features[f"clean-fid, {mode}"]
        ratio = statistics.median(
            ours / base for ours, base in zip(rates[name], rates[f"clean-fid, {mode}"], strict=True)
        )
        print(
            f"{name:34s} {rate:6.2f} images/s, {ratio:4.2f} x clean-fid ({mode}); "
            f"features differ from its by {distance(features[name], other):.1e}"
        )
    result: dict[str, Any] = {"images_per_second": medians}
    if BFLOAT16 in features:
        reference = features["ours, clean"]
        spread = np.sqrt(((reference - reference.mean(0)) ** 2).mean())
        moved = float(np.sqrt(((features[BFLOAT16] - reference) ** 2).mean()) / spread)
        print(f"bfloat16 moves features by {moved:.1%} of their spread between images (root mean square)")
        result["bfloat16_moves"] = moved
    else:
        print("bfloat16 is left out: without AVX-512 it is many times slower than float32")
    differences = {m: distance(features[f"ours, {m}"], features[f"clean-fid, {m}"]) for m in MODES}
    return result | {"relative_difference": differences}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the peers' progress bars."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def distance(features: np.ndarray, other: np.ndarray) -> float:
    """Of two sets of features, relative to the size of the second (Euclidean)."""
    return float(np.linalg.norm(features - other) / np.linalg.norm(other))


def compare_frechet(dimension: int) -> dict[str, float]:
    """The distance of two sets of 3 x dimension feature vectors, as clean-fid takes it and as ours."""
    from cleanfid.fid import frechet_distance

    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(dimension, dimension)) * np.exp(-np.arange(dimension) / (dimension / 4))
    sides = []
    for shift in (0.0, 0.1):
        rows = generator.normal(size=(3 * dimension, dimension)) @ mixing.T / dimension**0.5
        sides.append(FeatureStatistics.of(np.maximum(rows + shift, 0)))
    statistics_distance(*(FeatureStatistics.of(np.eye(8)) for _ in sides))  # LAPACK is loaded on first use
    started = time.perf_counter()
    ours = statistics_distance(*sides)
    our_seconds = time.perf_counter() - started
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = frechet_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)
    their_seconds = time.perf_counter() - started
    print(
        f"\nFréchet term at {dimension}: ours {our_seconds:.2f} s, clean-fid (scipy sqrtm) {their_seconds:.2f} s, "
        f"{their_seconds / our_seconds:.1f} x; values {ours:.9g} and {theirs:.9g}"
    )
    return {"ours_seconds": our_seconds, "clean_fid_seconds": their_seconds, "ours": ours, "clean_fid": float(theirs)}


def network_flops(config: ModelConfig) -> int:
    """Floating-point operations of the U-Net on one image (a multiplication and an addition count as 2)."""
    network = build_on_meta(config).eval()
    x_t = torch.empty(1, *config.image_shape, device="meta")
    return _flops(network, x_t, torch.zeros(1, dtype=torch.int64, device="meta"))


def inception_flops(network: nn.Module) -> int:
    return _flops(network.to("meta"), torch.empty(1, 3, 299, 299, device="meta"))


def _flops(network: nn.Module, *inputs: torch.Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(*inputs)
    return counter.get_total_flops()


def project(inception: int, peak_teraflops: float, gpu: str, sustained: float) -> list[dict[str, Any]]:
    """What 50,000 images cost on one GPU, if it sustains a share of its peak. A projection: nothing ran there."""
    print(
        f"\nPROJECTION (no GPU was used): one {gpu}, peak {peak_teraflops:g} TFLOP/s, {sustained:.0%} of it sustained"
        f"\nhours = 50,000 x (steps x F_network + F_inception) / (peak x {sustained:g} x 3600), "
        f"F_inception = {inception / 1e9:.1f} GFLOP"
    )
    rows = []
    for preset in ("cifar10", "celebahq256"):
        network = network_flops(PRESETS[preset]().model)
        for steps in (1000, 50):
            hours = 50_000 * (steps * network + inception) / (peak_teraflops * 1e12 * sustained * 3600)
            share = inception / (steps * network + inception)
            print(
                f"{preset:12s} F_network {network / 1e9:7.1f} GFLOP, {steps:4d} steps: {hours:8.2f} GPU hours "
                f"({share:.2%} of it Inception)"
            )
            rows.append({"preset": preset, "network_flops": network, "steps": steps, "gpu_hours": round(hours, 3)})
    return rows


def main(
    num_images: int = 32,
    rounds: int = 7,
    image_size: int = 256,
    dimension: int = 2048,
    gpu: str = "NVIDIA H100 SXM in bfloat16 (dense)",
    peak_teraflops: float = 989.0,
    sustained: float = 0.3,
) -> None:
    """Compare the extraction of features and the Fréchet term, and project the cost of 50,000 images on a GPU.

    Args:
        num_images: images in the set
        rounds: each contestant is measured once a round; the median counts
        image_size: side of the images in pixels
        dimension: features of the Fréchet term
        gpu: the GPU of the projection, in words
        peak_teraflops: its peak
        sustained: share of the peak that is assumed to be sustained
    """
    torch.set_num_threads(1)
    arrays = pictures(num_images, image_size, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        for name, shown in (("all", arrays), ("first", arrays[:SMALL_BATCH])):
            (files / name).mkdir(parents=True)
            for number, array in enumerate(shown):
                Image.fromarray(array).save(files / name / f"{number:06d}.png")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            networks = Networks(Path(folder))
        images = torch.from_numpy(arrays).permute(0, 3, 1, 2)
        result: dict[str, Any] = {"features": compare_features(networks, images, files, rounds)}
    result["frechet"] = compare_frechet(dimension)
    layers = Layers(nn.ModuleList(block for blocks in networks.pytorch_fid.blocks for block in blocks))
    result["projection"] = project(inception_flops(layers), peak_teraflops, gpu, sustained)
    print(json.dumps(result))


if __name__ == "__main__":
    run_script(main)
