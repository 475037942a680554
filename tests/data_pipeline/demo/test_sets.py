"""The sets that need no download, and the command line over everything."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from data_pipeline.commands import main
from data_pipeline.demo.faces import draw_face
from data_pipeline.demo.sets import DemoOptions
from data_pipeline.paths import resolve_path
from data_pipeline.storage.shards import open_dataset
from tests.support.data import encoded, photo, write_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYDDPM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_digits_are_those_of_scikit_learn(cache: Path) -> None:
    folder = resolve_path("demo:digits")
    assert Path(folder).is_relative_to(cache)
    digits = load_digits()
    with open_dataset(folder) as dataset:
        assert dataset.image_shape == (8, 8, 1)
        read = np.stack([dataset.read(index) for index in range(len(dataset))])[..., 0]
    np.testing.assert_array_equal(read, np.rint(digits.images * 255 / 16))
    assert resolve_path("demo:digits") == folder
    assert resolve_path("/some/where") == "/some/where"
    assert resolve_path("s3://bucket/set") == "s3://bucket/set"


def test_options_in_a_path_make_sets_of_their_own(cache: Path) -> None:
    faces = "faces?num_images=3&image_size=16"
    names = ("digits?num_images=20", "digits?num_images=20&image_size=16", faces, f"{faces}&seed=1")
    folders = {resolve_path(f"demo:{name}") for name in names}
    assert len(folders) == 4
    digests = set()
    for folder in folders:
        with open_dataset(folder) as dataset:
            digests.add(dataset.manifest.digest)
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("demo:cats", "digits, faces, mnist"),
        ("demo:faces?size=3", "size"),
        ("demo:faces?image_size=big", "whole number"),
        ("demo:faces?image_size=300", "256"),
        ("demo:faces?num_images=0", "num_images"),
        ("demo:digits?num_images=1798", "1797"),
        ("demo:mnist?num_images=5001", "5000"),
    ],
)
def test_wrong_demo_paths_are_named(cache: Path, path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_path(path)


def test_many_processes_can_resolve_the_same_path_at_once(cache: Path) -> None:
    program = (
        "from data_pipeline.paths import resolve_path; print(resolve_path('demo:faces?num_images=20&image_size=16'))"
    )
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert len(printed) == 1
    assert all(process.returncode == 0 for process in processes)
    with open_dataset(printed.pop()) as dataset:
        assert len(dataset) == 20


def test_faces_are_functions_of_seed_and_index() -> None:
    face = draw_face(3, 5, 32)
    assert (face.shape, face.dtype) == ((32, 32, 3), np.uint8)
    np.testing.assert_array_equal(face, draw_face(3, 5, 32))
    others = {draw_face(seed, index, 32).tobytes() for seed in range(3) for index in range(10)}
    assert len(others) == 30


@pytest.mark.parametrize("size", [8, 33, 64, 256])
def test_faces_look_alike_at_every_size(size: int) -> None:
    """A face drawn small is close to the same face drawn large: antialiased, not another picture."""
    from PIL import Image

    large = Image.fromarray(draw_face(0, 1, 256)).resize((size, size), Image.Resampling.BOX)
    difference = np.abs(np.asarray(large).astype(int) - draw_face(0, 1, size)).mean()
    assert difference < 8


def test_faces_are_a_varied_set_with_a_face_in_the_middle() -> None:
    faces = np.stack([draw_face(0, index, 32) for index in range(120)]).astype(float)
    assert faces.std(axis=0).mean() > 30
    mean = faces.mean(axis=0)
    skin, corner = mean[14:22, 12:20].mean(axis=(0, 1)), mean[:4, :4].mean(axis=(0, 1))
    assert skin[0] - skin[2] > 30  # skin is warm in the middle of the picture
    assert abs(corner[0] - corner[2]) < 25  # and the background is neutral on average
    eyes, cheeks = mean[15:18, 9:23].mean(), mean[19:22, 9:23].mean()
    assert eyes < cheeks


def test_faces_can_be_drawn_by_another_process() -> None:
    source = DemoOptions("faces", image_size=16, num_images=5, seed=2).source()
    elsewhere = pickle.loads(pickle.dumps(source))
    entries = source.entries()
    np.testing.assert_array_equal(elsewhere.read(entries[4]).image, draw_face(2, 4, 16))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_pack_verify_and_order_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path / "in", 23)
    dest = str(tmp_path / "out")
    arguments = ["pack", str(tmp_path / "in"), dest, "--image-size", "8", "--samples-per-shard", "5"]
    status, out, shown = run(capsys, *arguments)
    assert status == 0
    assert shown == ""  # it was done before a line of progress was due
    assert "23 RGB images of 8x8 in 5 shards" in out
    assert run(capsys, *arguments)[0] == 0
    status, out, _ = run(capsys, "verify", dest)
    assert (status, out.startswith("ok: 23 samples in 5 shards, digest ")) == (0, True)
    unions = set()
    for world_size in (1, 2, 3, 7):
        command = ["order", dest, "--seed", "4", "--global-batch-size", "8", "--world-size", str(world_size)]
        _, out, _ = run(capsys, *command, "--start-step", "2", "--num-steps", "9")
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["step"] for line in lines] == list(range(2, 11))
        assert all(len(line["ranks"]) == world_size for line in lines)
        unions.add(json.dumps([[key for keys in line["ranks"] for key in keys] for line in lines]))
    assert len(unions) == 1
    with open_dataset(dest) as dataset:
        assert {dataset.key(index) for index in range(23)} >= set(json.loads(unions.pop())[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pack", "{tmp}/missing", "{tmp}/out", "--image-size", "8"], "does not exist"),
        (["pack", "{tmp}/in", "{tmp}/out"], "--image-size"),
        (["pack", "{tmp}/in", "{tmp}/out", "--image-size", "big"], "big"),
        (["pack", "{tmp}/in", "{tmp}/out", "--image-size", "8", "--encoding", "gif"], "gif"),
        (["pack", "{tmp}/in", "{tmp}/out", "--image-size", "8", "--num-processes", "0"], "num_processes"),
        (["pack", "{tmp}/in", "{tmp}/out", "--imagesize", "8"], "imagesize"),
        (["pack", "{tmp}/in"], "DEST"),
        (["verify", "{tmp}/in"], "manifest.json is missing"),
        (["demo", "cats", "{tmp}/out"], "cats"),
        (["order", "demo:cats"], "cats"),
        (["fly"], "fly"),
        ([], "a command is missing"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(photo(16)))
    status, _, err = run(capsys, *[argument.format(tmp=tmp_path) for argument in arguments])
    message = err.strip().splitlines()[-1]
    assert (status, message.startswith("error: "), words in message) == (2, True, True)
    assert "Traceback" not in err


def test_the_command_line_works_from_a_shell_and_help_explains_every_option(tmp_path: Path) -> None:
    def run_module(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "data_pipeline", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "200"})

    demo = run_module("demo", "digits", str(tmp_path / "digits"), "--num-images", "30")
    assert demo.returncode == 0, demo.stderr
    assert "30 grey images of 8x8" in demo.stdout
    failed = run_module("pack", str(tmp_path / "none"), str(tmp_path / "out"))
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: source")
    shown = run_module("pack", "--help").stdout
    for option in ("--image-size", "--jpeg-quality", "--keep-bytes", "--exact", "--ray", "--skip-refused"):
        assert option in shown


def test_a_packed_set_is_found_where_nothing_can_be_written(cache: Path) -> None:
    folder = resolve_path("demo:digits?num_images=20")

    def refuse(event: str, arguments: tuple[object, ...]) -> None:
        """As a read-only disk does, also to root."""
        if refusing and event == "open" and str(arguments[0]).startswith(str(cache)):
            assert isinstance(arguments[2], int)
            if arguments[2] & (os.O_WRONLY | os.O_RDWR):
                raise OSError(30, "Read-only file system", str(arguments[0]))

    refusing = True
    sys.addaudithook(refuse)  # cannot be taken away again
    try:
        assert resolve_path("demo:digits?num_images=20") == folder
    finally:
        refusing = False
