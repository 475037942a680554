"""A pack that is stopped, or loses a process or its disk for a moment, ends in good order and can go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_pipeline.packing import process_runner
from data_pipeline.packing.pack import PackOptions, pack
from data_pipeline.packing.process_runner import run_in_processes
from data_pipeline.sources.source import Entry, FolderSource, Sample
from tests.support.data import write_folder

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
    assert (process.returncode, text.splitlines()[-1][:11]) == (143, "interrupted"), text
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
