"""Packing a source into shards and a manifest: in parallel, resumable, the same bytes for the same images."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common.files import TEMPORARY_NAMES, write_text_atomic
from data_pipeline.packing.earlier import already_packed, finished_shard, remove_strays
from data_pipeline.packing.options import PackOptions, Recipe
from data_pipeline.packing.report import write_report
from data_pipeline.packing.writer import WORK_FOLDER, ShardNotes, Task, write_shard
from data_pipeline.sources.source import Entry, FolderSource, Source
from data_pipeline.storage.manifest import MANIFEST_NAME, Manifest

TaskRunner = Callable[[Sequence[Task]], Iterator[ShardNotes]]
"""Runs tasks in any order and place; yields the notes as they are done"""
Progress = Callable[[int, int, int], None]
"""Called after each shard with: images done, images in all, images refused"""


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
    changed_at = source.changed_at(entries)
    listing = hashlib.sha256(json.dumps([entry[:3] for entry in entries]).encode()).hexdigest()
    dest.mkdir(parents=True, exist_ok=True)
    with _only_packer(dest):
        tasks = _tasks(source, entries, recipe, dest, options)
        packed = already_packed(source, tasks, recipe, dest, listing, options.skip_refused)
        if packed:
            _remove_leftovers(dest)
            return packed
        _check_dest(dest)
        if not entries:
            raise ValueError(f"no images found in this {source.kind}{_first_refusal(source)}")
        _prepare(dest / WORK_FOLDER)
        notes = _run_all(tasks, run or run_serially, progress)
        manifest = _finish(source, recipe, dest, tasks, notes, listing, options.skip_refused)
        remove_strays(dest, manifest)
        if source.changed_at(entries) != changed_at:
            raise ValueError("the source changed while it was being packed; the same command again packs what is new")
        write_text_atomic(dest / MANIFEST_NAME, manifest.to_json())
        shutil.rmtree(dest / WORK_FOLDER)
        return manifest


def run_task(task: Task) -> ShardNotes:
    """Pack one shard unless an earlier pack finished it."""
    return finished_shard(task) or write_shard(task)


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


def _remove_leftovers(dest: Path) -> None:
    """What a pack left that was killed when its manifest was there; nothing on a disk that cannot be written."""
    shutil.rmtree(dest / WORK_FOLDER, ignore_errors=True)
    for stale in dest.glob(TEMPORARY_NAMES):
        with suppress(OSError):
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
        return f" ({source.num_ignored} files are not images)"
    return f"; {len(source.refused)} were refused, the first is {source.refused[0].name}: {source.refused[0].reason}"
