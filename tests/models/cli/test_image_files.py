"""Images read for the likelihood: every kind of source, in order, never altered in silence."""

import io

import numpy as np
import pytest
from PIL import Image

from models.cli.image_files import read_batches

PACKED = "is a packed data set: measure it by `python -m eval likelihood"
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)


def _png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def _npy(image):
    stream = io.BytesIO()
    np.save(stream, image)
    return stream.getvalue()


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "folder" / "b").mkdir(parents=True)
    for number, place in enumerate(["0.png", "1.png", "2.png", "b/3.png", "b/4.png"]):
        (tmp_path / "folder" / place).write_bytes(_png(IMAGES[number]))
    (tmp_path / "folder" / "notes.txt").write_text("not an image")
    (tmp_path / "mixed").mkdir()
    for number in range(5):
        name, content = (f"{number}.PNG", _png) if number % 2 else (f"{number}.npy", _npy)
        (tmp_path / "mixed" / name).write_bytes(content(IMAGES[number]))
    np.save(tmp_path / "array.npy", IMAGES)
    np.savez(tmp_path / "named.npz", images=IMAGES, labels=np.zeros(5))
    np.savez(tmp_path / "only.npz", IMAGES)
    return tmp_path


@pytest.mark.parametrize("name", ["folder", "mixed", "array.npy", "named.npz", "only.npz"])
def test_every_source_gives_the_same_images_in_order(sources, name):
    batches = list(read_batches(sources / name, (3, 6, 6), 2, None))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches), IMAGES.transpose(0, 3, 1, 2))
    few = list(read_batches(sources / name, (3, 6, 6), 10, 3))
    assert [len(batch) for batch in few] == [3]


def test_grey_images_serve_grey_and_colour_models(tmp_path):
    (tmp_path / "grey.png").write_bytes(_png(IMAGES[0, :, :, 0]))
    (grey,) = read_batches(tmp_path, (1, 6, 6), 2, None)
    (colour,) = read_batches(tmp_path, (3, 6, 6), 2, None)
    np.testing.assert_array_equal(grey[0, 0], IMAGES[0, :, :, 0])
    np.testing.assert_array_equal(colour[0], np.stack([IMAGES[0, :, :, 0]] * 3))


def _write(content, name):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "make", "error", "message"),
    [
        ("", lambda folder: None, FileNotFoundError, "holds no images"),
        ("missing", lambda folder: None, FileNotFoundError, "does not exist"),
        ("", _write(b"no image", "a.png"), ValueError, "a.png is not a readable image"),
        ("", _write(_png(IMAGES[0])[:60], "a.png"), ValueError, "a.png is not a readable image"),
        ("", _write(_png(IMAGES[0, :4]), "a.png"), ValueError, r"a.png is uint8 of shape \(4, 6, 3\)"),
        ("", _write(_png(np.zeros((6, 6, 4), np.uint8)), "a.png"), ValueError, "colour mode RGBA"),
        ("", _write(_npy(np.zeros((6, 6, 3))), "a.npy"), ValueError, "a.npy is float64"),
        (
            "",
            _write(b"{}", "manifest.json"),
            ValueError,
            PACKED,
        ),
        ("", _write(b"", "a.tar"), ValueError, PACKED),
        ("a.tar", _write(b"", "a.tar"), ValueError, PACKED),
        ("a.npy", _write(_npy(np.zeros((0, 6, 6, 3), np.uint8)), "a.npy"), FileNotFoundError, "holds no images"),
        ("a.npy", _write(b"x", "a.npy"), ValueError, "a.npy is not a readable array file"),
        ("a.npz", _write(b"PK34", "a.npz"), ValueError, "a.npz is not a readable array file"),
        ("a.npz", lambda folder: None, FileNotFoundError, "does not exist"),
        ("a.npy", _write(_npy(np.zeros((2, 6, 6, 3))), "a.npy"), ValueError, "must be uint8"),
        ("a.txt", _write(b"x", "a.txt"), ValueError, "neither a folder"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, name, make, error, message):
    make(tmp_path)
    with pytest.raises(error, match=message):
        list(read_batches(tmp_path / name, (3, 6, 6), 2, None))


def _damaged_npz():
    stream = io.BytesIO()
    np.savez_compressed(stream, images=IMAGES)
    content = bytearray(stream.getvalue())
    content[60] ^= 255
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("unclosed.npy", _npy(IMAGES).replace(b"(5, 6, 6, 3)", b"(5, 6, 6, 3 ")),
        ("endless.npy", _npy(IMAGES).replace(b"(5, 6, 6, 3), }        ", b"(999999999999, 6, 3), }")),
        ("short.npy", _npy(IMAGES)[:200]),
        ("damaged.npz", _damaged_npz()),
    ],
)
def test_a_damaged_array_is_named_whatever_numpy_raises(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is not a readable array file"):
        list(read_batches(tmp_path / name, (3, 6, 6), 2, None))


def test_a_folder_with_the_name_of_an_image_is_passed_over(tmp_path):
    (tmp_path / "a.png").mkdir()
    (tmp_path / "a.png" / "b.png").write_bytes(_png(IMAGES[0]))
    [batch] = read_batches(tmp_path, (3, 6, 6), 2, None)
    np.testing.assert_array_equal(batch[0], IMAGES[0].transpose(2, 0, 1))


def test_grey_models_do_not_take_colour_images(sources):
    with pytest.raises(ValueError, match=r"\(6, 6, 3\), the model's images are uint8 of \(6, 6, 1\)"):
        list(read_batches(sources / "folder", (1, 6, 6), 2, None))
