"""Shards in an S3-compatible service: moto's server."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.loader import BatchStream
from data_pipeline.order import SampleOrder
from data_pipeline.storage.shards import open_dataset, read_manifest, reading_options
from tests.support.data import pack_arrays


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, np.ndarray]]:
    """An S3 endpoint with a packed set in s3://bucket/sets/one."""
    server = importlib.import_module("moto.server")
    s3fs = importlib.import_module("s3fs")
    folder = tmp_path_factory.mktemp("s3")
    _, images = pack_arrays(folder / "one", 30)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "x"),
            ("AWS_SECRET_ACCESS_KEY", "y"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        system = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
        system.mkdir("bucket")
        system.put(str(folder / "one"), "bucket/sets/one", recursive=True)
        yield endpoint, images
    running.stop()


def test_s3_gives_the_images(s3: tuple[str, np.ndarray], tmp_path: Path) -> None:
    endpoint, images = s3
    options = reading_options(
        {"s3_endpoint_url": endpoint, "cache_folder": str(tmp_path), "cache_gib": 0.01, "memory_gib": 0}
    )
    with open_dataset("s3://bucket/sets/one", **options) as dataset:
        order = SampleOrder(dataset.manifest.shard_sizes, 0, 6, dataset.manifest.digest)
        with BatchStream(dataset, order) as stream:
            batches = [next(stream) for _ in range(5)]
        np.testing.assert_array_equal([dataset.read(index) for index in range(len(images))], images)
        assert (tmp_path / dataset.manifest.shards[0].sha256).is_file()
    seen = {image.numpy().tobytes() for batch in batches for image in batch.images}
    assert seen == {image.tobytes() for image in images.transpose(0, 3, 1, 2)}
    with pytest.raises(FileNotFoundError, match="bucket/sets/none/manifest"):
        open_dataset("s3://bucket/sets/none", **options)


def test_a_public_bucket_needs_no_credentials(
    s3: tuple[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3fs = importlib.import_module("s3fs")
    system = s3fs.S3FileSystem(endpoint_url=s3[0], skip_instance_cache=True)
    for path in system.ls("bucket/sets/one"):
        system.chmod(path, "public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3[0])
    assert read_manifest("s3://bucket/sets/one").num_samples == len(s3[1])


def test_the_endpoint_may_come_from_the_environment(
    s3: tuple[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3[0])
    manifest = read_manifest("s3://bucket/sets/one")
    assert manifest.num_samples == len(s3[1])
