"""A pack that is stopped, or loses a process or its disk for a moment, ends in good order and can go on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from data_pipeline.packing import process_runner
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack, run_task
from data_pipeline.packing.process_runner import run_in_processes
from data_pipeline.packing.writer import ShardNotes, Task
from data_pipeline.sources.source import Entry, FolderSource, Sample
from tests.support.data import tree, write_folder

SMALL = PackOptions(image_size=8, samples_per_shard=7)


def test_sigterm_ends_a_pack_in_good_order(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 260, size=120)
    command = [sys.executable, "-m", "data_pipeline", "pack", str(tmp_path / "in"), str(tmp_path / "out")]
    command += ["--image-size", "512", "--samples-per-shard", "20", "--exact", "--num-processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "out").glob("*.tar")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        workers = psutil.Process(process.pid).children()
        process.terminate()
        _, text = process.communicate(timeout=300)
    assert (process.returncode, text.splitlines()[-1][:11]) == (130, "interrupted"), text
    assert not psutil.wait_procs(workers, timeout=60)[1]


class DeadlySource(FolderSource):
    """Kills the process that reads it, as the kernel does when memory runs out."""

    def read(self, entry: Entry) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().read(entry)


def test_a_killed_packing_process_is_named_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_runner, "_MIN_ENTRIES_FOR_PROCESSES", 1)
    source = DeadlySource(write_folder(tmp_path / "in", 9))
    with pytest.raises(ChildProcessError, match="a packing process was killed"):
        pack(source, tmp_path / "out", SMALL, run_in_processes(2))


class FlakySource(FolderSource):
    """A folder on a disk that has a hiccup."""

    failing = True

    def read(self, entry: Entry) -> Sample:
        if self.failing and entry.name == "b/photo003.png":
            raise OSError(5, "Input/output error")
        return super().read(entry)


def test_a_passing_error_of_the_disk_ends_the_pack_and_is_no_refusal(tmp_path: Path) -> None:
    source = FlakySource(write_folder(tmp_path / "in", 9))
    time.sleep(0.02)
    for skip_refused in (False, True):
        options = PackOptions(8, samples_per_shard=7, skip_refused=skip_refused)
        with pytest.raises(OSError, match=r"b/photo003\.png cannot be read: .*Input/output"):
            pack(source, tmp_path / "out", options)
    source.failing = False
    assert pack(source, tmp_path / "out", SMALL).num_samples == 9
    assert not list(tmp_path.rglob(".tmp-*"))


def pack_killed_before(event: int, source: Path, dest: Path) -> bool:
    """Pack in a process that dies before its event-th change of the file system; False if it had fewer of them."""
    pid = os.fork()
    if pid == 0:
        num_left = event

        def die(name: str, arguments: tuple[object, ...]) -> None:
            nonlocal num_left
            writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or name in ("os.rename", "os.remove", "os.rmdir", "os.utime", "os.mkdir"):
                if num_left == 0:
                    os._exit(9)
                num_left -= 1

        sys.addaudithook(die)
        try:
            pack(FolderSource(source), dest, SMALL)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_pack_killed_at_any_moment_goes_on_to_the_same_files_and_leaves_no_others(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", 9, size=8)
    time.sleep(0.02)  # file times tick slower than the clock
    pack(FolderSource(source), tmp_path / "whole", SMALL)
    event = 0
    while pack_killed_before(event, source, tmp_path / f"out{event}"):
        pack(FolderSource(source), tmp_path / f"out{event}", SMALL)
        assert tree(tmp_path / f"out{event}") == tree(tmp_path / "whole"), event
        event += 1
    assert event > 20


def test_a_source_that_changes_while_it_is_packed_is_named_and_packed_again(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", 9)

    def changed_after_reading(tasks: Sequence[Task]) -> Iterator[ShardNotes]:
        yield from map(run_task, tasks)
        # Of the same size, so that only its time tells.
        path = source / "a" / "photo000.png"
        path.write_bytes(path.read_bytes())

    with pytest.raises(ValueError, match="the source changed while it was being packed"):
        pack(FolderSource(source), tmp_path / "out", SMALL, changed_after_reading)
    assert not (tmp_path / "out" / "manifest.json").exists()
    pack(FolderSource(source), tmp_path / "out", SMALL)
    pack(FolderSource(source), tmp_path / "fresh", SMALL)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


class BrokenSource(FolderSource):
    def read(self, entry: Entry) -> Sample:
        raise OSError(28, "No space left on device")


def test_half_a_shard_is_not_left_on_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        pack(BrokenSource(write_folder(tmp_path / "in", 9)), tmp_path / "out", SMALL)
    assert not list(tmp_path.rglob("*.tar"))
