"""Images per second of data loaders on the same files, cores and batches, in interleaved rounds.

    python benchmarks/data_streams.py [--num-images 3000] [--rounds 3] [--beside-training]

Every loader gives shuffled, randomly flipped uint8 batches of 64 RGB images of 256 pixels (JPEG, quality 95) with two
workers, pixels in the order in which they are decoded; "usual" is what its tutorial shows (Pillow), "same decoder" uses
libjpeg-turbo through simplejpeg as ours does.
Peers that are not installed are named and left out: pip install mosaicml-streaming litdata.
"""

import importlib.util
import io
import json
import multiprocessing
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common.command_line import run_script
from data_pipeline.loader import BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.sources.source import FolderSource
from data_pipeline.storage.shards import open_dataset

BATCH, SIZE, NUM_WORKERS = 64, 256, 2
USUAL = "ImageFolder, usual (float)"
Batches = Iterator[torch.Tensor]


def turbo(data: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(data, "RGB")


def pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


class Decode:
    """Stored bytes to a flipped or unflipped (H, W, C) uint8 tensor; picklable, for worker processes."""

    def __init__(self, decoder: Callable[[bytes], np.ndarray], key: str | None = None) -> None:
        self.decoder, self.key = decoder, key

    def __call__(self, sample: Any) -> torch.Tensor:
        image = torch.from_numpy(self.decoder(sample[self.key] if self.key else sample))
        return image.flip(1) if random.random() < 0.5 else image


class Files(Dataset[torch.Tensor]):
    """A folder of files, as ImageFolder reads it, with a decoder of choice."""

    def __init__(self, folder: Path, decode: Decode) -> None:
        self.paths, self.decode = sorted(folder.rglob("*.jpg")), decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.decode(self.paths[index].read_bytes())


if importlib.util.find_spec("streaming"):
    import streaming

    class Mosaic(streaming.StreamingDataset):
        """MosaicML's dataset with a decoder of choice."""

        def __init__(self, decode: Decode, **settings: Any) -> None:
            super().__init__(**settings)
            self.decode = decode

        def __getitem__(self, index: Any) -> torch.Tensor:
            return self.decode(super().__getitem__(index))


if importlib.util.find_spec("litdata"):
    import litdata

    class Lit(litdata.StreamingDataset):
        """litdata's dataset with a decoder of choice."""

        def __init__(self, decode: Decode, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.decode = decode

        def __getitem__(self, index: Any) -> torch.Tensor:
            return self.decode(super().__getitem__(index))


def batches_of(dataset: Any, shuffle: bool = False) -> Batches:
    loader = DataLoader(
        dataset, BATCH, shuffle=shuffle, num_workers=NUM_WORKERS, drop_last=True, persistent_workers=True
    )
    while True:
        for batch in loader:
            yield batch[0] if isinstance(batch, list) else batch


def ours(root: Path) -> Batches:
    with open_dataset(root / "ours", memory_bytes=0) as dataset:
        manifest = dataset.manifest
        order = SampleOrder(manifest.shard_sizes, 0, BATCH, manifest.digest)
        with BatchStream(dataset, order, num_threads=NUM_WORKERS) as stream:
            for batch in stream:
                for image in batch.images:
                    if random.random() < 0.5:  # the trainer does this on its device
                        image.copy_(image.flip(-1))
                yield batch.images


def image_folder(root: Path) -> Batches:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()])
    return batches_of(ImageFolder(str(root / "files"), transform), shuffle=True)


def plain_webdataset(root: Path, decoder: Callable[[bytes], np.ndarray]) -> Batches:
    import webdataset

    urls = [str(path) for path in sorted((root / "ours").glob("*.tar"))]
    dataset = webdataset.WebDataset(urls, shardshuffle=100).shuffle(500).map(Decode(decoder, "jpg"))
    return batches_of(dataset)


def mosaic(root: Path, decoder: Callable[[bytes], np.ndarray]) -> Batches:
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    if not (root / "mds").exists():
        with streaming.MDSWriter(out=str(root / "mds"), columns={"image": "bytes"}) as writer:
            for path in sorted((root / "files").rglob("*.jpg")):
                writer.write({"image": path.read_bytes()})

    return batches_of(Mosaic(Decode(decoder, "image"), local=str(root / "mds"), shuffle=True, batch_size=BATCH))


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def lit(root: Path, decoder: Callable[[bytes], np.ndarray]) -> Batches:
    if not (root / "lit").exists():
        paths = [str(path) for path in sorted((root / "files").rglob("*.jpg"))]
        litdata.optimize(fn=_read, inputs=paths, output_dir=str(root / "lit"), chunk_bytes="32MB", num_workers=1)
        multiprocessing.set_start_method("fork", force=True)  # litdata changed it for everyone

    def batches() -> Batches:
        dataset = Lit(Decode(decoder), str(root / "lit"), shuffle=True, drop_last=True)
        loader = litdata.StreamingDataLoader(
            dataset, batch_size=BATCH, num_workers=NUM_WORKERS, persistent_workers=True
        )
        while True:
            yield from loader

    return batches()


def contestants(root: Path) -> dict[str, Callable[[], Batches]]:
    found: dict[str, Callable[[], Batches]] = {
        "ours": lambda: ours(root),
        USUAL: lambda: image_folder(root),
        "ImageFolder, same decoder": lambda: batches_of(Files(root / "files", Decode(turbo)), shuffle=True),
        "webdataset, usual": lambda: plain_webdataset(root, pillow),
        "webdataset, same decoder": lambda: plain_webdataset(root, turbo),
    }
    for module, name, make in (("streaming", "MosaicML Streaming", mosaic), ("litdata", "litdata", lit)):
        if importlib.util.find_spec(module):
            found[f"{name}, usual"] = lambda make=make: make(root, pillow)  # type: ignore[misc]
            found[f"{name}, same decoder"] = lambda make=make: make(root, turbo)  # type: ignore[misc]
        else:
            print(f"{name} is not installed: left out")
    return found


def decode_limit(root: Path, seconds: float) -> tuple[float, float]:
    """The same of the decoder alone, two threads at once, from memory into one buffer each."""
    files = [path.read_bytes() for path in sorted((root / "files").rglob("*.jpg"))[:200]]
    stop, cpu_started = time.perf_counter() + seconds, cpu_seconds()

    def work(_: int) -> int:
        buffer, number = np.empty((SIZE, SIZE, 3), np.uint8), 0
        while time.perf_counter() < stop:
            simplejpeg.decode_jpeg(files[number % len(files)], "RGB", buffer=buffer)
            number += 1
        return number

    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        number = sum(pool.map(work, range(NUM_WORKERS)))
    return number / seconds, number / (cpu_seconds() - cpu_started)


def cpu_seconds() -> float:
    """Processor time of this process and its workers so far."""
    main = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [main, *main.children(recursive=True)])


def rate(batches: Batches, seconds: float) -> tuple[float, float]:
    """Images/s, and images per second of processor time, after the first batches, which pay for starting."""
    for _ in range(4):
        next(batches)
    started, cpu_started, number = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - started < seconds:
        number += len(next(batches))
    elapsed, cpu = time.perf_counter() - started, cpu_seconds() - cpu_started
    close = getattr(batches, "close", None)
    if close:
        close()
    return number / elapsed, number / cpu


def ratio_of_ours(rates: dict[str, list[tuple[float, float]]], name: str) -> float:
    """Ours in images/s against another's of the same round, which a machine that changes its speed does not change."""
    return statistics.median(ours[0] / other[0] for ours, other in zip(rates["ours"], rates[name], strict=True))


def _train(stop: Any) -> None:
    """A small convolutional training step, again and again, on one core."""
    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(64, 3, 3, padding=1)
    )
    while not stop.is_set():
        images = torch.randn(4, 3, 64, 64)
        (model(images) - images).square().mean().backward()


def make_files(folder: Path, number: int) -> None:
    """JPEGs of about 34 kB: smooth colours with some grain."""
    generator = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(generator.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC)).astype(int)
        pixels = (smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06d}.jpg", quality=95)


def main(num_images: int = 3000, rounds: int = 3, seconds: float = 4.0, beside_training: bool = False) -> None:
    """Compare the loaders.

    Args:
        num_images: images in the set
        rounds: each loader is measured once a round; the median counts
        seconds: length of a measurement
        beside_training: run a training step on one core all the while
    """
    torch.set_num_threads(1)
    stop = multiprocessing.get_context("spawn").Event()
    beside = multiprocessing.get_context("spawn").Process(target=_train, args=(stop,), daemon=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "files" / "class").mkdir(parents=True)
        make_files(root / "files" / "class", num_images)
        pack(FolderSource(root / "files"), root / "ours", PackOptions(SIZE, keep_bytes=True, samples_per_shard=100))
        if beside_training:
            beside.start()
        rates: dict[str, list[tuple[float, float]]] = {"decoder alone": []}
        makers = contestants(root)
        for _ in range(rounds):
            rates["decoder alone"].append(decode_limit(root, seconds / 2))
            for name, make in makers.items():
                rates.setdefault(name, []).append(rate(make(), seconds))
        stop.set()
    print(f"\n{platform.machine()}, {NUM_WORKERS} workers, torch {torch.__version__}, median of {rounds} rounds")
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in rates.items()}
    limit = medians["decoder alone"]
    for name, (wall, cpu) in sorted(medians.items(), key=lambda item: -item[1][0]):
        shares = f"{wall / limit[0]:4.0%}", f"{cpu / limit[1]:4.0%}"
        print(f"{name:32s} {wall:6.0f} images/s ({shares[0]} of the decoder), {cpu:6.0f} a cpu second ({shares[1]})")
    peers = {name: ratio_of_ours(rates, name) for name in makers if name.endswith("same decoder")}
    for name, ratio in (*peers.items(), (USUAL, ratio_of_ours(rates, USUAL))):
        print(f"ours is {ratio:.2f} times {name}, the median over rounds")
    print(json.dumps({name: [round(value) for value in row] for name, row in medians.items()}))


if __name__ == "__main__":
    run_script(main)
