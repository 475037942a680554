"""Images per second of packing 1024 px sources to 256 px, one process each, and what the shortcut costs in quality.

    python benchmarks/data_packing.py [--num-images 300] [--rounds 3]

The peer is what one would write by hand: Pillow decodes, crops and resizes with Lanczos; webdataset's ShardWriter
writes JPEGs of quality 95. Rounds are interleaved; the median counts. The sources take about as long to decode as
CelebA-HQ's (270 JPEGs or 35 PNGs a second and core); grainier JPEGs cost more to decode, which is the same for all.
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from common.command_line import run_script
from data_pipeline.packing.framing import Framing, frame_bytes
from data_pipeline.packing.pack import PackOptions, pack
from data_pipeline.sources.source import FolderSource

SOURCE_SIZE, SIZE = 1024, 256


def by_hand(folder: Path, dest: Path) -> None:
    dest.mkdir()
    with webdataset.ShardWriter(str(dest / "%06d.tar"), maxcount=1000, verbose=0) as writer:
        for path in sorted(folder.iterdir()):
            image = Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=95)
            writer.write({"__key__": path.stem, "jpg": buffer.getvalue()})


def ours(exact: bool) -> Callable[[Path, Path], None]:
    def run(folder: Path, dest: Path) -> None:
        pack(FolderSource(folder), dest, PackOptions(SIZE, encoding="jpg", exact=exact))

    return run


def make_files(root: Path, number: int) -> None:
    """The same images as JPEG and PNG: smooth shapes, edges and grain at several scales."""
    generator = np.random.default_rng(0)
    for name in ("jpg", "png"):
        (root / name).mkdir()
    for i in range(number):
        pixels = np.zeros((SOURCE_SIZE, SOURCE_SIZE, 3))
        for side, strength in ((8, 110), (64, 45), (256, 14), (1024, 2.5)):
            noise = generator.normal(128, strength, (side, side, 3)).clip(0, 255).astype(np.uint8)
            layer = Image.fromarray(noise).resize((SOURCE_SIZE, SOURCE_SIZE), Image.Resampling.BICUBIC)
            pixels += np.asarray(layer).astype(float) - 128
        image = Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8))
        image.save(root / "jpg" / f"{i:04d}.jpg", quality=85)
        image.save(root / "png" / f"{i:04d}.png")


def quality(folder: Path) -> str:
    """How far the fast resize is from Lanczos over all source pixels."""
    squared, largest = [], 0
    for path in sorted(folder.iterdir())[:20]:
        data = path.read_bytes()
        fast, exact = (frame_bytes(data, Framing(SIZE, 3, exact)).pixels.astype(int) for exact in (False, True))
        squared.append(((fast - exact) ** 2).mean())
        largest = max(largest, int(np.abs(fast - exact).max()))
    return f"PSNR {10 * np.log10(255**2 / np.mean(squared)):.1f} dB, largest difference {largest} of 255"


def main(num_images: int = 300, rounds: int = 3) -> None:
    """Compare packing.

    Args:
        num_images: sources of each format
        rounds: repetitions, interleaved
    """
    makers = {"Pillow Lanczos + ShardWriter": by_hand, "ours": ours(False), "ours, exact": ours(True)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_files(root, num_images)
        for source in ("jpg", "png"):
            rates: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
            for number in range(rounds):
                for name, make in makers.items():
                    started, cpu_started = time.perf_counter(), time.process_time()
                    make(root / source, root / f"{source}-{name}-{number}".replace(" ", "_"))
                    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu_started
                    rates[name].append((num_images / elapsed, num_images / cpu))
            medians = {
                name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in rates.items()
            }
            base = medians["Pillow Lanczos + ShardWriter"]
            for name, (wall, cpu) in medians.items():
                print(
                    f"{source} {name:30s} {wall:6.1f} images/s ({wall / base[0]:4.2f} x), "
                    f"{cpu:6.1f} a cpu second ({cpu / base[1]:4.2f} x)"
                )
            print(f"{source} fast against exact: {quality(root / source)}")


if __name__ == "__main__":
    run_script(main)
