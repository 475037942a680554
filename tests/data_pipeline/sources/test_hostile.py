"""Sources that cannot be trusted are refused, whole or by name, and never extracted or unpickled."""

import importlib
import io
import os
import pickle
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.packing.pack import pack
from data_pipeline.sources.open import open_source
from data_pipeline.storage.shards import open_dataset
from data_pipeline.storage.tar_index import tar_members
from tests.support.data import encoded, photo, write_folder
from tests.support.sources import OPTIONS, add, packed, photos, write_tar


class Exploit:
    """Unpickling this writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (self.path,)


def test_pickles_are_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(pickle.dumps(Exploit(str(tmp_path / "owned"))))
    with pytest.raises(ValueError, match=r"pickles.*cifar-10-binary"):
        open_source(tmp_path / "in")
    buffer = io.BytesIO()
    np.save(buffer, np.array([Exploit(str(tmp_path / "owned"))]), allow_pickle=True)
    write_tar(tmp_path / "npy.tar", {"a.npy": buffer.getvalue()})
    with pytest.raises(ValueError, match="no images"):
        packed(tmp_path / "npy.tar", tmp_path / "out")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"name": "../up.png", "data": b"x"}, "leaves its folder"),
        ({"name": "a/../../up.png", "data": b"x"}, "leaves its folder"),
        ({"name": "/etc/shadow.png", "data": b"x"}, "leaves its folder"),
        ({"name": "a\\..\\up.png", "data": b"x"}, "leaves its folder"),
        ({"name": "line\nbreak.png", "data": b"x"}, "control characters"),
        ({"name": "link.png", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "link, device"),
        ({"name": "hard.png", "type": tarfile.LNKTYPE, "linkname": "photo000.png"}, "link, device"),
        ({"name": "pipe.png", "type": tarfile.FIFOTYPE}, "link, device"),
        ({"name": "disk.png", "type": tarfile.BLKTYPE, "devmajor": 8}, "link, device"),
        ({"name": "photo000.png", "data": b"again"}, "same key"),
        ({"name": "photo000.jpg", "data": b"again"}, "same key"),
        ({"name": "./photo000.png", "data": b"again"}, "same key"),
        ({"name": "notes.json", "data": b"{}"}, r"'notes\.json' 2 times"),
    ],
)
def test_hostile_tars_are_refused_and_nothing_is_extracted(tmp_path: Path, member: dict, words: str) -> None:
    with tarfile.open(tmp_path / "in.tar", "w") as archive:
        for name, data in photos(2).items():
            add(archive, name, data)
        add(archive, "notes.json", b"{}")
        add(archive, **member)
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words):
        packed(tmp_path / "in.tar", tmp_path / "out", skip_refused=True)
    assert {path for path in tmp_path.rglob("*")} - set(before) <= {tmp_path / "out"}


def test_hostile_zips_are_refused(tmp_path: Path) -> None:
    def refused(write, words: str) -> None:
        path = tmp_path / "in.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", encoded(photo(16)))
            write(archive)
        with pytest.raises(ValueError, match=words):
            packed(path, tmp_path / "out", skip_refused=True)

    link = zipfile.ZipInfo("b.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    refused(lambda archive: archive.writestr("../b.png", b"x"), "leaves its folder")
    refused(lambda archive: archive.writestr("/b.png", b"x"), "leaves its folder")
    refused(lambda archive: archive.writestr(link, b"/etc/passwd"), "link or device")
    refused(lambda archive: archive.writestr("a.jpg", b"x"), "same key")
    with pytest.warns(UserWarning, match="Duplicate"):
        refused(lambda archive: archive.writestr("a.png", b"x"), "same key")


def test_a_damaged_zip_member_is_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, data in photos(3).items():
            archive.writestr(name, data)
    content = bytearray((tmp_path / "in.zip").read_bytes())
    content[200] ^= 1
    (tmp_path / "in.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"photo000\.png.*CRC"):
        packed(tmp_path / "in.zip", tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_any_damaged_byte_of_a_zip_is_a_plain_error(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w", method) as archive:
        archive.writestr("a.bmp", encoded(np.zeros((40, 40, 3), dtype=np.uint8), "BMP"))
    whole = (tmp_path / "in.zip").read_bytes()
    original = encoded(np.zeros((40, 40, 3), dtype=np.uint8), "BMP")
    num_refused = 0
    for place in range(len(whole)) if len(whole) < 1000 else (*range(60), *range(len(whole) - 120, len(whole))):
        for flip in (1, 255):
            content = bytearray(whole)
            content[place] ^= flip
            (tmp_path / "in.zip").write_bytes(content)
            try:
                source = open_source(tmp_path / "in.zip")
                images = [source.read(entry).image for entry in source.entries()]
            except (ValueError, OSError):
                num_refused += 1
            else:
                assert all(image == original for image in images)
    assert num_refused > 0


def test_an_unreadable_folder_is_not_taken_for_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "in", 4)
    scandir = os.scandir

    def refuses_b(path: str) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses_b)
    with pytest.raises(PermissionError, match="in/b"):
        open_source(tmp_path / "in")


def damaged_tars(whole: bytes) -> dict[str, bytes]:
    member = 512 + len(encoded(photo(16))) + (-len(encoded(photo(16))) % 512)
    zeroed = bytearray(whole)
    zeroed[member : member + 512] = bytes(512)
    flipped = bytearray(whole)
    flipped[member + 3] ^= 1
    giant = bytearray(whole)
    giant[member + 124 : member + 136] = b"77777777777\0"
    return {
        "cut at a member": whole[:member],
        "cut in a header": whole[: member + 100],
        "cut in the data": whole[: member + 600],
        "zeroed header": bytes(zeroed),
        "flipped header": bytes(flipped),
        "giant size": bytes(giant),
        "no end marker": whole.rstrip(b"\0"),
        "data behind the end": whole + b"x" * 512,
        "empty": b"",
        "text": b"hello " * 200,
    }


@pytest.mark.parametrize("damage", damaged_tars(bytes(4000)))
def test_a_damaged_tar_never_gives_fewer_samples(tmp_path: Path, damage: str) -> None:
    path = write_tar(tmp_path / "in.tar", {f"{i}.png": encoded(photo(16)) for i in range(3)})
    assert len(list(tar_members(path))) == 3
    path.write_bytes(damaged_tars(path.read_bytes())[damage])
    with pytest.raises(ValueError, match=r"in\.tar"):
        list(tar_members(path))


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 3 << 30
    with open(tmp_path / "in.tar", "wb") as file:
        file.write(header.tobuf())
        file.truncate(4 << 30)
    with pytest.raises(ValueError, match="header of"):
        list(tar_members(tmp_path / "in.tar"))


def test_a_truncated_lmdb_is_refused_and_kills_nobody(tmp_path: Path) -> None:
    lmdb = importlib.import_module("lmdb")
    with lmdb.open(str(tmp_path / "in"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for i in range(50):
            transaction.put(f"{i:040x}".encode(), encoded(photo(48, i)))
    # In a process of its own: reading behind the end of the file is a SIGBUS.
    program = """if True:
        import os, sys
        from pathlib import Path
        from data_pipeline.sources.tables import LmdbSource
        for part in (0.99, 0.5, 0.02, 0):
            os.truncate(sys.argv[1], int(os.path.getsize(sys.argv[1]) * part))
            try:
                LmdbSource(Path(sys.argv[1])).entries()
            except ValueError as error:
                print(error)
    """
    command = [sys.executable, "-c", program, str(tmp_path / "in" / "data.mdb")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 4), done.stderr


def test_links_and_special_files_in_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 2, size=16)
    (tmp_path / "outside.png").write_bytes(encoded(photo(16, 5)))
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ValueError, match=r"link\.png: is a link; give --follow-links"):
        packed(tmp_path / "in", tmp_path / "out")
    pack(open_source(tmp_path / "in", follow_links=True), tmp_path / "followed", OPTIONS)
    with open_dataset(tmp_path / "followed") as dataset:
        np.testing.assert_array_equal(dataset.read(2), photo(16, 5))
    (tmp_path / "in" / "link.png").unlink()
    os.mkfifo(tmp_path / "in" / "pipe.png")
    with pytest.raises(ValueError, match="not a regular file"):
        packed(tmp_path / "in", tmp_path / "out2")
    (tmp_path / "in" / "pipe.png").unlink()
    (tmp_path / "in" / "circle").symlink_to(tmp_path / "in")
    with pytest.raises(ValueError, match="link to a folder"):
        packed(tmp_path / "in", tmp_path / "out3")
