"""Packing a source into shards and a manifest: in parallel, resumable, the same bytes for the same images."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from common.files import TEMPORARY_NAMES, sha256_of_file, write_bytes_atomic
from data_pipeline.packing.framing import Framing
from data_pipeline.packing.report import write_report
from data_pipeline.packing.writer import (
    WORK_FOLDER,
    Recipe,
    ShardNotes,
    finished_shard,
    index_of,
    write_shard,
)
from data_pipeline.sources.source import Entry, FolderSource, Source
from data_pipeline.storage.codec import Encoding
from data_pipeline.storage.dataset import parse_index
from data_pipeline.storage.manifest import MANIFEST_NAME, Manifest, check_shard_name, load_manifest

LARGEST_LOSSLESS_SIZE = 64
"""encoding=auto stores PNG up to this image size, JPEG above"""


class Task(NamedTuple):
    """The packing of one shard."""

    source: Source
    entries: Sequence[Entry]
    recipe: Recipe
    dest: Path
    name: str


TaskRunner = Callable[[Sequence[Task]], Iterator[ShardNotes]]
"""Runs tasks in any order and place; yields the notes as they are done"""
Progress = Callable[[int, int, int], None]
"""Told after each shard: images done, images in all, images refused"""


@dataclass(frozen=True)
class PackOptions:
    """How to pack."""

    image_size: int | None = None
    """Side of the stored squares, pixels; None: the source's own where it has one"""
    image_channels: int | None = None
    """3 for RGB, 1 for grey; None: the source's own"""
    encoding: Encoding | Literal["auto"] = "auto"
    """png and npy are lossless; auto is png up to 64 pixels and jpg above"""
    jpeg_quality: int = 95
    """1 to 100"""
    keep_bytes: bool = False
    """Store JPEGs that already fit as they are"""
    exact: bool = False
    """Decode at full size and resize by Pillow's Lanczos to the bit"""
    background: int = 255
    """Grey value under transparent pixels"""
    samples_per_shard: int = 1000
    """Source images to a shard"""
    name: str = "images"
    """Start of the shards' file names"""
    skip_refused: bool = False
    """Leave refused images out instead of failing"""

    def recipe(self, source: Source) -> Recipe:
        """The options with the source's own values filled in. ValueError."""
        if self.samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be at least 1, got {self.samples_per_shard}")
        check_shard_name(self.shard_name(0))
        image_size = source.image_size if self.image_size is None else self.image_size
        if image_size is None:
            raise ValueError(f"a {source.kind} has no size of its own: give --image-size, for example 256")
        channels = source.image_channels if self.image_channels is None else self.image_channels
        encoding: Encoding
        if self.encoding == "auto":
            encoding = "png" if image_size <= LARGEST_LOSSLESS_SIZE else "jpg"
        else:
            encoding = self.encoding
        framing = Framing(image_size, channels, self.exact, self.background)
        return Recipe(framing, encoding, self.jpeg_quality, self.keep_bytes)

    def shard_name(self, number: int) -> str:
        """File name of a shard, counted from 0."""
        return f"{self.name}-{number:06d}.tar"


def pack(
    source: Source,
    dest: str | Path,
    options: PackOptions | None = None,
    run: TaskRunner | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Pack a source into the folder `dest`, writing manifest.json last. Packing again what is packed changes nothing.

    Raises ValueError if images are refused (unless skip_refused), or `dest` holds something else or lies in the source;
    OSError if the system cannot read an image now. A killed pack goes on where it was: finished shards are kept if they
    verify.
    """
    dest, options = Path(dest), options or PackOptions()
    recipe = options.recipe(source)
    if isinstance(source, FolderSource) and dest.resolve().is_relative_to(source.root.resolve()):
        raise ValueError(f"DEST {dest} lies in SOURCE, whose images it would join; give a folder beside it")
    entries = source.entries()
    listing = hashlib.sha256(json.dumps([entry[:3] for entry in entries]).encode()).hexdigest()
    dest.mkdir(parents=True, exist_ok=True)
    with _only_packer(dest):
        tasks = _tasks(source, entries, recipe, dest, options)
        packed = _already_packed(source, tasks, recipe, dest, listing, options.skip_refused)
        if packed:
            return packed
        _check_dest(dest)
        if not entries:
            raise ValueError(f"no images found in this {source.kind}{_first_refusal(source)}")
        _prepare(dest / WORK_FOLDER)
        notes = _run_all(tasks, run or run_serially, progress)
        manifest = _finish(source, recipe, dest, tasks, notes, listing, options.skip_refused)
        _remove_strays(dest, manifest)
        write_bytes_atomic(dest / MANIFEST_NAME, manifest.to_json().encode())
        shutil.rmtree(dest / WORK_FOLDER)
        return manifest


def run_task(task: Task) -> ShardNotes:
    """Pack one shard unless an earlier pack finished it."""
    return finished_shard(*task) or write_shard(*task)


def run_serially(tasks: Sequence[Task]) -> Iterator[ShardNotes]:
    """All in this process."""
    return map(run_task, tasks)


def _tasks(source: Source, entries: list[Entry], recipe: Recipe, dest: Path, options: PackOptions) -> list[Task]:
    size = options.samples_per_shard
    return [
        Task(source, entries[start : start + size], recipe, dest, options.shard_name(number))
        for number, start in enumerate(range(0, len(entries), size))
    ]


def _prepare(work: Path) -> None:
    """The folder for notes, without what a killed pack was just writing."""
    work.mkdir(exist_ok=True)
    for stale in [*work.glob(TEMPORARY_NAMES), *work.parent.glob(TEMPORARY_NAMES)]:
        stale.unlink()


def _run_all(tasks: list[Task], run: TaskRunner, progress: Progress | None) -> list[ShardNotes]:
    """Notes in the order of the tasks, whatever order they were done in."""
    num_images = sum(len(task.entries) for task in tasks)
    done: dict[str, ShardNotes] = {}
    num_done = num_refused = 0
    for notes in run(tasks):
        done[notes.shard] = notes
        num_done += notes.num_entries
        num_refused += len(notes.refused)
        if progress:
            progress(num_done, num_images, num_refused)
    return [done[task.name] for task in tasks]


def _finish(
    source: Source,
    recipe: Recipe,
    dest: Path,
    tasks: list[Task],
    notes: list[ShardNotes],
    listing: str,
    skip_refused: bool,
) -> Manifest:
    """Check, report and describe; everything but the manifest file."""
    shards = tuple(note.record for note in notes if note.record)
    refused = source.refused + [refusal for note in notes for refusal in note.refused]
    if not shards:
        raise ValueError(f"all {len(refused)} images were refused; the first: {refused[0].name}: {refused[0].reason}")
    manifest = Manifest(
        image_size=recipe.framing.image_size,
        image_channels=recipe.framing.image_channels,
        num_samples=sum(shard.samples for shard in shards),
        preprocessing=recipe.describe(),
        shards=shards,
        source={"kind": source.kind, "num_refused": len(refused), "listing_sha256": listing},
    )
    write_report(manifest, dest, notes, refused, source.num_ignored)
    if refused and not skip_refused:
        raise ValueError(
            f"{len(refused)} images were refused, the first is {refused[0].name}: {refused[0].reason}; see "
            f"{dest / 'report.json'}, mend or remove them, or give --skip-refused to pack the others without them"
        )
    return manifest


def _already_packed(
    source: Source, tasks: list[Task], recipe: Recipe, dest: Path, listing: str, skip_refused: bool
) -> Manifest | None:
    """The manifest of a finished pack of the same source; ValueError if `dest` holds another data set."""
    if not (dest / MANIFEST_NAME).exists():
        return None
    manifest = load_manifest(dest)
    framing = recipe.framing
    entries = [entry for task in tasks for entry in task.entries]
    same = (
        manifest.preprocessing == recipe.describe()
        and (manifest.image_size, manifest.image_channels) == (framing.image_size, framing.image_channels)
        and manifest.source.get("listing_sha256") == listing
        and source.changed_at(entries) < (dest / MANIFEST_NAME).stat().st_mtime
        and {shard.name for shard in manifest.shards} <= {task.name for task in tasks}
    )
    if not same or not _mended(manifest, tasks, dest):
        raise ValueError(
            f"{dest} already holds a data set packed from other images or with other settings; "
            "give another DEST, or delete that folder first"
        )
    num_refused = manifest.source.get("num_refused", 0)
    if num_refused and not skip_refused:
        raise ValueError(
            f"{dest} was packed without {num_refused} images that were refused, see {dest / 'report.json'}; give "
            "--skip-refused again, or mend or remove them and give another DEST"
        )
    return manifest


def _mended(manifest: Manifest, tasks: list[Task], dest: Path) -> bool:
    """Check the shards and write lost indexes again; False if the samples are spread over the shards in another way."""
    entries = {task.name: task.entries for task in tasks}
    for shard in manifest.shards:
        if not (dest / shard.name).is_file() or sha256_of_file(dest / shard.name) != shard.sha256:
            raise ValueError(f"{dest} holds this data set, but shard {shard.name} is damaged; delete the folder first")
        path = dest / shard.index_name
        if not path.is_file() or sha256_of_file(path) != shard.index_sha256:
            write_bytes_atomic(path, index_of(dest / shard.name, shard.name).to_json(shard.name).encode())
        keys = parse_index(path.read_bytes(), shard).keys
        if not {entry.key for entry in entries[shard.name]}.issuperset(keys):
            return False
    return True


def _remove_strays(dest: Path, manifest: Manifest) -> None:
    """Shards that an unfinished pack with other settings left."""
    wanted = {name for shard in manifest.shards for name in (shard.name, shard.index_name)}
    for path in [*dest.glob("*.tar"), *dest.glob("*.index.json")]:
        if path.name not in wanted:
            path.unlink()


def _check_dest(dest: Path) -> None:
    if any(dest.iterdir()) and not (dest / WORK_FOLDER).is_dir():
        raise ValueError(f"{dest} is not empty and not an unfinished pack; give an empty or new folder as DEST")


@contextmanager
def _only_packer(dest: Path) -> Iterator[None]:
    """Held by one packer at a time; the kernel lets go when the process ends, however it ends."""
    descriptor = os.open(dest, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"another process is packing into {dest}; wait for it or give another DEST") from error
    finally:
        os.close(descriptor)


def _first_refusal(source: Source) -> str:
    if not source.refused:
        return f" ({source.num_ignored} files are no images)"
    return f"; {len(source.refused)} were refused, the first is {source.refused[0].name}: {source.refused[0].reason}"
