"""What an earlier pack left in a destination: the shards that a killed one finished, or the whole data set."""

from pathlib import Path

from common.files import read_json, sha256_of_file, write_text_atomic
from data_pipeline.packing.options import Recipe
from data_pipeline.packing.writer import WORK_FOLDER, ShardNotes, Task, fingerprint
from data_pipeline.sources.source import Refusal, Source
from data_pipeline.storage.index import index_of, parse_index
from data_pipeline.storage.manifest import MANIFEST_NAME, Manifest, ShardRecord, load_manifest


def finished_shard(task: Task) -> ShardNotes | None:
    """The notes of a shard that an earlier, killed pack finished, if it still verifies and its sources are older."""
    source, entries, recipe, dest, name = task
    path = dest / WORK_FOLDER / (name + ".json")
    try:
        content = read_json(path)
        record = content["record"] and ShardRecord(**content["record"])
        content |= {"record": record, "refused": [Refusal(*refusal) for refusal in content["refused"]]}
        notes = ShardNotes(**content)
        fresh = source.changed_at(entries) < path.stat().st_mtime
        if notes.fingerprint != fingerprint(entries, recipe) or not fresh:
            return None
        if record and (
            sha256_of_file(dest / record.name) != record.sha256
            or sha256_of_file(dest / record.index_name) != record.index_sha256
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return notes


def already_packed(
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
            write_text_atomic(path, index_of(dest / shard.name, shard.name).to_json(shard.name))
        keys = parse_index(path.read_bytes(), shard).keys
        if not {entry.key for entry in entries[shard.name]}.issuperset(keys):
            return False
    return True


def remove_strays(dest: Path, manifest: Manifest) -> None:
    """Shards that an unfinished pack with other settings left."""
    wanted = {name for shard in manifest.shards for name in (shard.name, shard.index_name)}
    for path in [*dest.glob("*.tar"), *dest.glob("*.index.json")]:
        if path.name not in wanted:
            path.unlink()
