"""The report of a pack: counts, sizes, mean and preview."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.sources.source import FolderSource
from data_pipeline.storage.manifest import load_manifest
from tests.support.data import encoded, pack_arrays, photo, write_folder


def test_the_report_counts_sizes_and_enlarged_images(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 5, size=24)
    for number, (width, height) in enumerate([(40, 30), (40, 30), (15, 60)]):
        (tmp_path / "in" / f"other{number}.png").write_bytes(encoded(photo(width, number, height)))
    pack(FolderSource(tmp_path / "in"), tmp_path / "out", PackOptions(image_size=20, samples_per_shard=3))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["source_sizes"].items()) == [("24x24", 5), ("40x30", 2), ("15x60", 1)]
    assert (report["num_packed"], report["num_shards"], report["num_source_sizes"]) == (8, 3, 3)
    assert (report["num_enlarged"], report["num_refused"], report["refused"]) == (1, 0, [])
    manifest = load_manifest(tmp_path / "out")
    assert report["digest"] == manifest.digest
    assert report["total_bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))


def test_the_report_shows_mean_and_preview(tmp_path: Path) -> None:
    _, images = pack_arrays(tmp_path / "out", 100, size=16)
    mean = np.asarray(Image.open(tmp_path / "out" / "mean.png"))
    np.testing.assert_array_equal(mean, np.rint(images.mean(axis=0)).astype(np.uint8))
    preview = np.asarray(Image.open(tmp_path / "out" / "preview.png"))
    assert preview.shape == (8 * 18, 8 * 18, 3)
    np.testing.assert_array_equal(preview[:16, :16], images[0])
    np.testing.assert_array_equal(preview[-18:-2, -18:-2], images[99])
