"""interpolate, variations, progressive and noise as a user calls them: the files, their pixels, the mistakes."""

import json

import numpy as np
import pytest
from PIL import Image

from models.cli.commands import main
from models.cli.own_images import choose_images
from models.trained.model import load
from tests.support.snapshots import tiny_snapshot


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return tiny_snapshot(tmp_path_factory.mktemp("strips") / "snapshot")


@pytest.fixture(scope="module")
def model(snapshot):
    return load(snapshot, device="cpu")


def cells(path):
    """The images of a strip, (R, N, 8, 8, 3): cells of 64 pixels, eight for each of the image's, and gaps of 2."""
    picture = np.asarray(Image.open(path))
    rows, columns = ((side - 2) // 66 for side in picture.shape[:2])
    tops, lefts = (range(2, 66 * number, 66) for number in (rows, columns))
    return np.stack([[picture[top : top + 64 : 8, left : left + 64 : 8] for left in lefts] for top in tops])


def call(name, snapshot, output, *options):
    assert main([name, str(snapshot), "--device", "cpu", "--output", str(output), *options]) == 0
    return cells(output / f"{name.replace('interpolate', 'interpolation')}.png")


def test_interpolation_stands_between_its_images(snapshot, model, tmp_path):
    shown = call("interpolate", snapshot, tmp_path, "--indices", "4,2", "--timesteps", "3,19", "--num-columns", "3")
    assert shown.shape == (2, 5, 8, 8, 3)
    how = {"seed": 0, "sampler": "ddim", "num_sampling_steps": 20}
    first, second = (model.sample(1, first_index=index, **how)[0] for index in (4, 2))
    for row, timestep in zip(shown, (3, 19), strict=True):
        np.testing.assert_array_equal(row[0], first)
        np.testing.assert_array_equal(row[-1], second)
        np.testing.assert_array_equal(row[1:-1], model.interpolate(first, second, [0, 0.5, 1], timestep=timestep))
    record = json.loads((tmp_path / "interpolation.json").read_text())
    assert record["columns"] == ["first", "0", "0.5", "1", "second"]
    assert (record["rows"], record["snapshot"]) == (["t = 3", "t = 19"], str(snapshot))


def test_variations_of_an_image_file(snapshot, model, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "mine.png")
    options = ("--images", str(tmp_path / "mine.png"), "--num-columns", "3", "--seed", "5")
    shown = call("variations", snapshot, tmp_path, *options)
    assert shown.shape == (4, 4, 8, 8, 3)
    for row, timestep in zip(shown, (4, 9, 14, 19), strict=True):
        np.testing.assert_array_equal(row[0], image)
        np.testing.assert_array_equal(row[1:], model.variations(image, 3, timestep=timestep, seed=5))


def test_progressive_ends_in_the_samples_of_the_sample_command(snapshot, tmp_path):
    how = ("--num-images", "2", "--seed", "3", "--first-index", "1")
    shown = call("progressive", snapshot, tmp_path, *how, "--every", "5")
    assert shown.shape == (2, 4, 8, 8, 3)
    assert main(["sample", str(snapshot), "--device", "cpu", "--output", str(tmp_path), *how, "--format", "png"]) == 0
    files = sorted(path.name for path in tmp_path.glob("0*.png"))
    assert files == ["000001.png", "000002.png"]
    assert not (tmp_path / "samples.npz").exists()
    for row, name in zip(shown, files, strict=True):
        np.testing.assert_array_equal(row[-1], np.asarray(Image.open(tmp_path / name)))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_has_a_frame_for_each_column(snapshot, tmp_path, suffix):
    file = tmp_path / "new" / f"noise.{suffix}"
    timing = ("--frame-milliseconds", "50", "--animation", str(file))
    shown = call("noise", snapshot, tmp_path, "--indices", "0,1", "--timesteps", "0,4,9,19", *timing)
    assert shown.shape == (2, 5, 8, 8, 3)
    with Image.open(file) as animation:
        # Two images of 128 pixels side by side, which are 16 for each of theirs, with a gap of 2.
        assert (animation.n_frames, animation.size, animation.info["loop"]) == (5, (2 * 128 + 2, 128), 0)
        for number in range(5):
            animation.seek(number)
            frame = np.asarray(animation.convert("RGB")).astype(int)
            assert animation.info["duration"] == 50
            expected = shown[:, number].astype(int)
            # A GIF's 256 colours are enough for 128 pixels.
            np.testing.assert_array_equal(frame[::16, 0:128:16], expected[0])
            np.testing.assert_array_equal(frame[::16, 130::16], expected[1])


def test_own_images_are_turned_cropped_and_resized(model, tmp_path):
    """A photo on its side, left half red and right half blue once it is upright; an array; a grey file; by number."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, :16, 0] = upright[:, 16:, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by 90 degrees to the left
    Image.fromarray(np.rot90(upright)).save(tmp_path / "b.png", exif=exif)
    Image.new("L", (8, 8), 77).save(tmp_path / "a.png")
    np.save(tmp_path / "array.npy", np.full((2, 8, 8, 3), 9, np.uint8))
    sources = [tmp_path / "array.npy", tmp_path]
    array, grey, photo = choose_images(model, sources, [1, 2, 3], seed=0)
    assert (array == 9).all()
    assert (grey == 77).all()
    assert photo.shape == (8, 8, 3)
    # Lanczos rings by a level near the edge between them.
    assert photo[4, 1, 0] >= 250
    assert photo[4, 6, 2] >= 250
    assert max(photo[4, 1, 2], photo[4, 6, 0]) <= 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interpolate", "--indices", "1"], "give two, such as 0,1"),
        (["interpolate", "--timesteps", "20"], "a timestep is 20: it must be in [0, 19]"),
        (["noise", "--animation", "a.mp4"], "the suffix of animation is '.mp4': it must be one of .gif, .webp"),
        (["noise", "--images", "/nowhere"], "/nowhere does not exist"),
        (["noise", "--images", __file__], "is not readable"),
        (["variations", "--images", "ARRAY", "--index", "2"], "there are 2 images, counted from 0"),
        (["progressive", "--every", "0"], "every is 0"),
        (["progressive", "--step", "3"], "is not a run's directory"),
    ],
)
def test_mistakes_end_in_one_line(snapshot, tmp_path, capsys, arguments, message):
    np.save(tmp_path / "array.npy", np.zeros((2, 8, 8, 3), np.uint8))
    name, *options = [str(tmp_path / "array.npy") if part == "ARRAY" else part for part in arguments]
    assert main([name, str(snapshot), "--device", "cpu", "--output", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
