"""The commands of `python -m data_pipeline`: pack, demo, verify, order, audit."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.checks import check_whole
from common.command_line import CommandLine, run
from common.progress import progress

if TYPE_CHECKING:
    from data_pipeline.packing.pack import TaskRunner
    from data_pipeline.storage.manifest import Manifest


def pack(
    source: str,
    dest: str,
    image_size: int | None = None,
    image_channels: Literal[1, 3] | None = None,
    encoding: Literal["auto", "png", "jpg", "npy"] = "auto",
    jpeg_quality: int = 95,
    keep_bytes: bool = False,
    exact: bool = False,
    background: int = 255,
    samples_per_shard: int = 1000,
    name: str = "images",
    skip_refused: bool = False,
    follow_links: bool = False,
    num_processes: int | None = None,
    ray: bool = False,
) -> None:
    """Pack images into WebDataset shards with a manifest.

    Each image is turned upright, cropped to its centred square and resized with an antialiased Lanczos filter.
    The result is the same, byte for byte, on any number of processes. A killed pack goes on when started again.

    Args:
        source: folder of images, zip, tar, Parquet, LMDB (LSUN), MNIST IDX or CIFAR-10 binary files
        dest: new folder for the shards
        image_size: side of the stored squares in pixels; needed unless the source has a fixed size
        image_channels: 3 for RGB or 1 for grey; the source's own by default
        encoding: png and npy are lossless; auto is png up to 64 pixels and jpg above
        jpeg_quality: 1 to 100
        keep_bytes: store JPEGs that already have the right size as they are, without re-encoding
        exact: decode at full size and resize by Pillow's Lanczos to the bit; two to three times slower
        background: grey value 0 to 255 that transparent pixels are composited over
        samples_per_shard: source images to a shard; have several shards for each training worker
        name: start of the shards' file names
        skip_refused: leave out images that cannot be packed instead of failing; the report lists them
        follow_links: pack files that links in a folder point to
        num_processes: processes to use; all cores by default
        ray: use all nodes of the Ray cluster at RAY_ADDRESS; source and dest must be paths that all nodes see
    """
    from data_pipeline.packing.pack import PackOptions
    from data_pipeline.packing.pack import pack as pack_source
    from data_pipeline.packing.ray_runner import run_on_ray
    from data_pipeline.sources.open import open_source

    options = PackOptions(
        image_size,
        image_channels,
        encoding,
        jpeg_quality,
        keep_bytes,
        exact,
        background,
        samples_per_shard,
        name,
        skip_refused,
    )
    opened, folder = open_source(_local(source, "SOURCE"), follow_links), _local(dest, "DEST")
    with _progress("packing") as advance:
        runner = run_on_ray if ray else _runner(num_processes)
        manifest = pack_source(opened, folder, options, runner, advance)
    _print_packed(manifest, dest, opened.num_ignored)


def demo(
    name: Literal["digits", "faces", "mnist"],
    dest: str,
    image_size: int | None = None,
    num_images: int | None = None,
    seed: int = 0,
    num_processes: int | None = None,
) -> None:
    """Pack a data set that needs no download: handwritten digits, drawn faces, or a part of MNIST.

    Args:
        name: digits (scikit-learn's, 1797 grey images of 8 pixels), faces (drawn, as many RGB images as you like, up to
            256 pixels) or mnist (5000 grey images, padded to 32 pixels; needs pip install 'rayddpm[mnist]')
        dest: new folder for the shards
        image_size: side in pixels; digits 8, faces 64, mnist 32 by default
        num_images: how many; digits 1797, faces 2000, mnist 5000 by default
        seed: another seed draws other faces
        num_processes: processes to use; all cores by default
    """
    from data_pipeline.demo.sets import DemoOptions, pack_demo

    with _progress("packing") as advance:
        chosen = DemoOptions(name, image_size, num_images, seed)
        manifest = pack_demo(chosen, _local(dest, "DEST"), _runner(num_processes), advance)
    _print_packed(manifest, dest)


def verify(dest: str) -> None:
    """Check every hash, index and image of a packed data set.

    Args:
        dest: folder of the data set, its http(s):// or s3:// address, or demo:NAME
    """
    from data_pipeline.packing.verify import verify as verify_dataset
    from data_pipeline.paths import resolve_path

    with _progress("verifying") as advance:
        manifest = verify_dataset(resolve_path(dest), lambda done, total: advance(done, total, 0))
    print(f"ok: {manifest.num_samples} samples in {_shards(manifest)}, digest {manifest.digest}")


def order(
    dest: str,
    seed: int = 0,
    global_batch_size: int = 64,
    world_size: int = 1,
    start_step: int = 0,
    num_steps: int = 10,
    slice_images: int = 1,
) -> None:
    """Print which worker trains on which sample: one JSON line per step.

    Args:
        dest: folder of the data set, its http(s):// or s3:// address, or demo:NAME
        seed: seed of the run
        global_batch_size: images per step over all workers
        world_size: number of workers
        start_step: first step to print
        num_steps: how many steps to print
        slice_images: images that stay on one worker; a run that clips slices: its clip_slice_images
    """
    from data_pipeline.order import SampleOrder
    from data_pipeline.paths import resolve_path
    from data_pipeline.storage.shards import open_dataset, read_manifest

    check_whole("num_steps", num_steps, 0)
    check_whole("world_size", world_size, 1)
    path = resolve_path(dest)
    manifest = read_manifest(path)
    sample_order = SampleOrder(manifest.shard_sizes, seed, global_batch_size, manifest.digest, slice_images)
    with open_dataset(path) as dataset:
        for step in range(start_step, start_step + num_steps):
            drawn = [sample_order.samples(sample_order.counters(step, rank, world_size)) for rank in range(world_size)]
            ranks = [[dataset.key(int(index)) for index in samples] for samples in drawn]
            print(json.dumps({"step": step, "ranks": ranks}))


def audit(ledger: str, dest: str, num_steps: int | None = None) -> None:
    """Check that a run's workers were given every sample that its order says, once, with the right pixels.

    Args:
        ledger: folder ledger/ of a run that was trained with --data.ledger true
        dest: folder of the data set, or demo:NAME
        num_steps: how many steps to check; all that are recorded by default
    """
    from data_pipeline.ledger import audit as audit_ledger
    from data_pipeline.paths import resolve_path
    from data_pipeline.storage.shards import open_dataset

    with open_dataset(resolve_path(dest)) as dataset:
        found = audit_ledger(Path(ledger), dataset, num_steps)
    attempts = ", ".join(f"from step {start} on {size} worker(s)" for start, size in found.attempts.values())
    print(f"ok: {found.num_steps} steps, {found.num_samples} samples, each as ordered and once; attempts: {attempts}")


def _local(path: str, what: str) -> str:
    """The absolute path of a local file or folder; ValueError for an address."""
    from data_pipeline.storage.address import is_remote, shown_address

    if is_remote(path):
        raise ValueError(
            f"{what} {shown_address(path)} is an address; pack from and into local folders, then copy the packed "
            "folder to http(s):// or s3://, where training, verify and order read it"
        )
    return os.path.abspath(path)


def _runner(num_processes: int | None) -> "TaskRunner":
    from data_pipeline.packing.process_runner import run_in_processes

    if num_processes is not None:
        check_whole("num_processes", num_processes, 1)
    return run_in_processes(num_processes or len(os.sched_getaffinity(0)))


def _print_packed(manifest: "Manifest", dest: str, num_ignored: int = 0) -> None:
    size, channels = manifest.image_size, "RGB" if manifest.image_channels == 3 else "grey"
    print(f"{dest}: {manifest.num_samples} {channels} images of {size}x{size} in {_shards(manifest)}")
    print(f"digest {manifest.digest}")
    if num_ignored:
        print(f"{num_ignored} files were passed over, as their names are not those of images")
    print(f"see {dest}/report.json and {dest}/preview.png")


def _shards(manifest: "Manifest") -> str:
    return f"{len(manifest.shards)} shard{'s' * (len(manifest.shards) > 1)}"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """Progress on stderr, with the rate; a function to call with (done, total, refused)."""
    started = time.monotonic()
    with progress(what) as shown:

        def advance(done: int, total: int, refused: int) -> None:
            rate = f"{done / max(time.monotonic() - started, 1e-6):.0f} images/s"
            shown.report(done, total, rate, *([f"{refused} refused"] if refused else []))

        yield advance


COMMAND_LINE = CommandLine(
    prog="python -m data_pipeline",
    description="Pack images into verified shards, and look at the order in which they are trained on.",
    commands={"pack": pack, "demo": demo, "verify": verify, "order": order, "audit": audit},
    examples=(
        "pack ~/photos data/photos --image-size 64",
        "verify data/photos",
        "order data/photos --global-batch-size 64 --world-size 2 --num-steps 3",
    ),
    interrupted={
        **dict.fromkeys(
            ("pack", "demo"), "interrupted; finished shards are kept, and the same command goes on from here"
        ),
        **dict.fromkeys(("verify", "audit"), "interrupted; nothing was changed"),
    },
)


def main(arguments: Sequence[str], prog: str | None = None) -> int:
    """Exit code: 0 done, 2 a user's error, 130 interrupted."""
    return run(COMMAND_LINE, arguments, prog)
