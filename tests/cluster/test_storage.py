import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.storage import (
    COMPLETE,
    DamagedError,
    commit_directory,
    complete_directories,
    remove_directory,
    remove_leftovers,
    verify,
)
from common.code import ROOT
from common.files import read_json, write_json_atomic


def write_two_files(directory: Path) -> None:
    (directory / "a.bin").write_bytes(b"a" * 1000)
    (directory / "sub").mkdir()
    (directory / "sub" / "b.bin").write_bytes(b"b" * 10)


def test_a_committed_directory_verifies_and_carries_its_record(tmp_path: Path) -> None:
    directory = commit_directory(tmp_path, "step-1", write_two_files, {"step": 1})
    record = verify(directory)
    assert record["step"] == 1
    assert {name: f["bytes"] for name, f in record["files"].items()} == {"a.bin": 1000, "sub/b.bin": 10}


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "marker"])
def test_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    directory = commit_directory(tmp_path, "step-1", write_two_files)
    path = directory / ("a.bin" if damage != "marker" else COMPLETE)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[500] ^= 1
        path.write_bytes(content)
    elif damage == "delete":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedError, match=path.name):
        verify(directory)


@pytest.mark.parametrize(
    "record",
    [
        {},
        [],
        3,
        None,
        {"files": {}},
        {"files": []},
        {"files": "a.bin"},
        {"files": {"a.bin": 3}},
        {"files": {"a.bin": None}},
        {"files": {"a.bin": {"bytes": 1000}}},
        {"files": {"a.bin": {"size": 1000, "sha256": "0"}}},
        {"files": {"a.bin": {"bytes": "1000", "sha256": "0"}}},
        {"files": {"a.bin": {"bytes": 1000, "sha256": 0}}},
        {"Files": {"a.bin": {"bytes": 1000, "sha256": "0"}}},
    ],
)
def test_a_marker_of_another_shape_is_damage(tmp_path: Path, record: object) -> None:
    directory = commit_directory(tmp_path, "step-1", write_two_files)
    write_json_atomic(directory / COMPLETE, record)
    with pytest.raises(DamagedError, match=str(directory)):
        verify(directory)


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe"])
def test_a_file_that_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is not JSON"):
        read_json(path)


def test_a_full_disk_leaves_the_old_json_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "x.json"
    write_json_atomic(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json_atomic(path, {"a": 2})
    assert os.listdir(tmp_path) == ["x.json"]
    assert read_json(path) == {"a": 1}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        write_two_files(directory)
        raise OSError(28, "No space left on device")

    commit_directory(tmp_path, "step-1", write_two_files)
    with pytest.raises(OSError, match="No space"):
        commit_directory(tmp_path, "step-2", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_a_kill_in_mid_write_leaves_only_what_readers_do_not_see(tmp_path: Path) -> None:
    commit_directory(tmp_path, "step-1", write_two_files)
    code = f"""
import os, signal
from pathlib import Path
from cluster.storage import commit_directory
def write(directory):
    (directory / "half.bin").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
commit_directory(Path({str(tmp_path)!r}), "step-2", write)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in complete_directories(tmp_path)] == ["step-1"]
    assert len(remove_leftovers(tmp_path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_a_name_is_committed_once(tmp_path: Path) -> None:
    commit_directory(tmp_path, "step-1", write_two_files)
    with pytest.raises(FileExistsError, match="step-1"):
        commit_directory(tmp_path, "step-1", write_two_files)


def test_complete_directories_are_sorted_and_whole(tmp_path: Path) -> None:
    for step in (30, 4, 100):
        commit_directory(tmp_path, f"step-{step:08d}", write_two_files)
    (tmp_path / "step-00000200").mkdir()
    assert [p.name for p in complete_directories(tmp_path)] == ["step-00000004", "step-00000030", "step-00000100"]
    assert complete_directories(tmp_path / "none") == []


def test_a_failed_delete_only_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remove_directory(tmp_path / "never-there")
    assert "could not delete" in caplog.text


def test_atomic_json_replaces_and_leaves_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json_atomic(path, {"a": 1})
    write_json_atomic(path, {"a": 2})
    assert os.listdir(tmp_path) == ["x.json"]
    assert '"a": 2' in path.read_text()


def test_what_is_renamed_is_committed_though_its_folder_cannot_be_flushed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the rename on no file can be opened, nor the folder, which is done to flush it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def reached(moment: str) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0 if moment == "before_rename" else soft, hard))

    try:
        directory = commit_directory(tmp_path, "step-1", write_two_files, {"step": 1}, reached)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert verify(directory)["step"] == 1
    assert "may not survive a power cut: [Errno 24]" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_file_is_written_though_its_folder_cannot_be_flushed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From the rename on no file can be opened, nor the folder, which is done to flush it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = tmp_path / "x.json"
    write_json_atomic(path, {"a": 1})

    with pytest.MonkeyPatch.context() as patch:
        rename = os.replace

        def replace(source: Path, destination: Path) -> None:
            rename(source, destination)
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))

        patch.setattr(os, "replace", replace)
        try:
            write_json_atomic(path, {"a": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read_json(path) == {"a": 2}
    assert "x.json is written, but may not survive a power cut: [Errno 24]" in caplog.text
