"""Packing again: what an earlier pack finished is kept if it is still right."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import Task, pack, run_task
from data_pipeline.packing.writer import ShardNotes
from data_pipeline.sources.source import FolderSource
from tests.support.data import encoded, photo, tree, write_folder

SMALL = PackOptions(image_size=8, samples_per_shard=7)


def test_packing_again_changes_nothing_and_other_content_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", 9)
    first = pack(FolderSource(source), tmp_path / "out", SMALL)
    before = tree(tmp_path / "out")
    time.sleep(0.02)  # file times tick slower than the clock
    assert pack(FolderSource(source), tmp_path / "out", SMALL) == first
    assert tree(tmp_path / "out") == before
    for options in (PackOptions(16, samples_per_shard=7), PackOptions(8), PackOptions(8, 3, "png", name="other")):
        with pytest.raises(ValueError, match="already holds"):
            pack(FolderSource(source), tmp_path / "out", options)
    for damage in (Path.unlink, Path.touch):
        damage(tmp_path / "out" / "images-000001.index.json")
        assert pack(FolderSource(source), tmp_path / "out", SMALL) == first
        assert tree(tmp_path / "out") == before
    (source / "a" / "photo000.png").write_bytes(encoded(photo(24, seed=99)))
    with pytest.raises(ValueError, match="already holds"):
        pack(FolderSource(source), tmp_path / "out", SMALL)
    assert tree(tmp_path / "out") == before


class InterruptedPackError(Exception):
    """Stands for a kill in the middle of a pack."""


def test_a_killed_pack_keeps_the_shards_that_verify(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", 40)
    pack(FolderSource(source), tmp_path / "whole", SMALL)
    time.sleep(0.02)

    def dies_after_four(tasks: Sequence[Task]) -> Iterator[ShardNotes]:
        yield from map(run_task, tasks[:4])
        raise InterruptedPackError

    out = tmp_path / "out"
    with pytest.raises(InterruptedPackError):
        pack(FolderSource(source), out, SMALL, dies_after_four)
    assert not (out / "manifest.json").exists()
    (out / ".pack" / ".tmp-images-000005.tar").write_bytes(b"half a shard")
    damaged = out / "images-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    (source / "b" / "photo001.png").write_bytes(encoded(photo(24, seed=1)))  # same content, newer
    kept = {path: path.stat().st_ino for path in out.glob("*.tar")}
    pack(FolderSource(source), out, SMALL)
    assert tree(out) == tree(tmp_path / "whole")
    same_files = {path.name for path, inode in kept.items() if path.stat().st_ino == inode}
    assert same_files == {"images-000000.tar", "images-000003.tar"}


def test_a_changed_source_is_packed_again_after_a_kill(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", 20)

    def dies_after_two(tasks: Sequence[Task]) -> Iterator[ShardNotes]:
        yield from map(run_task, tasks[:2])
        raise InterruptedPackError

    with pytest.raises(InterruptedPackError):
        pack(FolderSource(source), tmp_path / "out", SMALL, dies_after_two)
    (source / "a" / "photo000.png").write_bytes(encoded(photo(24, seed=77)))
    pack(FolderSource(source), tmp_path / "out", SMALL)
    pack(FolderSource(source), tmp_path / "fresh", SMALL)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_sigkill_in_the_middle_and_the_same_command_again(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 260, size=120)
    command = [sys.executable, "-m", "data_pipeline", "pack", str(tmp_path / "in"), str(tmp_path / "out")]
    command += ["--image-size", "64", "--samples-per-shard", "20", "--exact", "--num-processes", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("*.tar"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=10)[1]  # they die with it
    assert not (tmp_path / "out" / "manifest.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    options = PackOptions(image_size=64, samples_per_shard=20, exact=True)
    pack(FolderSource(tmp_path / "in"), tmp_path / "fresh", options)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
