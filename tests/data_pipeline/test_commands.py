"""What the command line says of places it cannot use, and about what it passed over."""

from pathlib import Path

import pytest

from data_pipeline.commands import main
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.sources.source import FolderSource
from tests.support.data import tree, write_folder

SMALL = PackOptions(image_size=8, samples_per_shard=7)


@pytest.mark.parametrize("place", ["in", "in/out", "in/a/../b/out", "link/out"])
def test_a_folder_is_not_packed_into_itself(tmp_path: Path, place: str) -> None:
    source = write_folder(tmp_path / "in", 3)
    (tmp_path / "link").symlink_to(source)
    before = tree(source)
    with pytest.raises(ValueError, match="lies in SOURCE"):
        pack(FolderSource(source), tmp_path / place, SMALL)
    assert tree(source) == before


@pytest.mark.parametrize("address", ["s3://bucket/set", "https://me:secret@host/set", "file:///tmp/set"])
def test_addresses_are_not_taken_for_local_folders(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "in", 3)
    for arguments in (["pack", "in", address], ["pack", address, "out"], ["demo", "digits", address]):
        assert main([*arguments, "--image-size", "8"]) == 2
        text = capsys.readouterr().err
        assert "is an address; pack from and into local folders" in text
        assert "secret" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_command_counts_what_it_passed_over_and_takes_the_manifest_for_the_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "in", 3)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    assert main(["pack", str(tmp_path / "in"), str(tmp_path / "out"), "--image-size", "8"]) == 0
    assert "1 files were passed over" in capsys.readouterr().out
    for command in (["verify"], ["order", "--global-batch-size", "2", "--num-steps", "1"]):
        assert main([*command, str(tmp_path / "out" / "manifest.json")]) == 0
    capsys.readouterr()
    for world_size in ("0", "-3"):
        assert main(["order", str(tmp_path / "out"), "--world-size", world_size]) == 2
        assert f"world_size is {world_size}: it must be at least 1" in capsys.readouterr().err
