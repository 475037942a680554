"""Samples by image id, blocks on disk, and cached reference statistics."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.storage.shards import open_dataset
from eval.metrics.extractor import build_extractor
from eval.metrics.reference import ReferenceCache
from eval.protocol import parse_protocol
from eval.sampling.blocks import BlockWorker, block_path, missing_blocks, preview_path
from eval.sampling.images import sample_images
from models.snapshot import load_snapshot
from tests.support.evaluation import PROTOCOL, SETTINGS, job_of, make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs", steps=(100,))


def test_image_i_does_not_depend_on_the_batch_it_is_drawn_in(run):
    torch.set_num_threads(1)
    snapshot = load_snapshot(job_of(run).checkpoint)
    whole = sample_images(snapshot, PROTOCOL, 0, 12)
    parts = torch.cat([sample_images(snapshot, PROTOCOL, 0, 5), sample_images(snapshot, PROTOCOL, 5, 7)])
    assert whole.dtype == torch.uint8
    assert torch.equal(whole, parts)
    assert torch.equal(whole, sample_images(snapshot, PROTOCOL, 0, 12, batch_size=5))
    other_seed = sample_images(snapshot, replace(PROTOCOL, seed=1), 0, 12)
    assert not torch.equal(whole, other_seed)


def test_blocks_are_written_whole_and_not_written_again(run, tmp_path):
    job = job_of(run)
    worker = BlockWorker(job.checkpoint, job.protocol, tmp_path, SETTINGS)
    assert [worker.run(block) for block in (2, 0)] == [4, 8]
    path = block_path(tmp_path, 0)
    before = path.stat().st_mtime_ns
    worker.run(0)
    assert path.stat().st_mtime_ns == before
    assert np.load(path).shape == (8, 1280)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_reference_statistics_are_cached_by_data_extractor_and_resize_mode(run, tmp_path):
    cache, opened = ReferenceCache(tmp_path / "cache"), []
    protocol, extractor = job_of(run).protocol, build_extractor(PROTOCOL)

    def open_images():
        opened.append(1)
        return open_dataset(run.parent.parent / "data")

    def get(bound):
        return cache.statistics(bound, open_images, extractor, lambda: None)

    first, again = get(protocol), get(protocol)
    assert len(opened) == 1
    assert np.array_equal(first.covariance, again.covariance)
    for other in (
        replace(protocol, extractor_sha256="0" * 64),
        replace(protocol, extractor="inception", resize="clean"),
        replace(protocol, extractor="inception", resize="legacy_tensorflow"),
        replace(protocol, precision="bfloat16"),
        protocol.bind("d" * 64),
    ):
        get(other)
    assert len(opened) == 6
    get(replace(protocol, num_samples=999, sampler="ddpm", num_sampling_steps=None, seed=5))
    assert len(opened) == 6


def test_a_damaged_cache_file_is_made_again(run, tmp_path):
    cache, extractor = ReferenceCache(tmp_path / "cache"), build_extractor(PROTOCOL)
    protocol = job_of(run).protocol

    def get():
        return cache.statistics(protocol, lambda: open_dataset(run.parent.parent / "data"), extractor, lambda: None)

    expected = get().covariance
    [path] = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    assert np.array_equal(get().covariance, expected)


@pytest.mark.parametrize("damage", ["empty", "garbage", "short", "not finite", "no preview"])
def test_a_damaged_block_counts_as_missing_and_is_made_again(run, tmp_path, damage):
    job, path = job_of(run), block_path(tmp_path, 1)
    worker = BlockWorker(job.checkpoint, job.protocol, tmp_path, SETTINGS)
    for block in range(3):
        worker.run(block)
    assert missing_blocks(tmp_path, job.protocol, SETTINGS) == []
    rows = np.load(path)
    if damage == "short":
        np.save(path, rows[:3])
    elif damage == "not finite":
        np.save(path, rows * np.nan)
    elif damage == "no preview":
        preview_path(tmp_path, 1).write_bytes(b"")
    else:
        path.write_bytes(b"" if damage == "empty" else b"\x93NUMPY garbage")
    assert missing_blocks(tmp_path, job.protocol, SETTINGS) == [1]
    worker.run(1)
    assert missing_blocks(tmp_path, job.protocol, SETTINGS) == []
    assert np.array_equal(np.load(path), rows)


def test_cached_features_of_another_dimension_are_made_again(run, tmp_path):
    cache, extractor = ReferenceCache(tmp_path / "cache"), build_extractor(PROTOCOL)
    protocol = job_of(run, parse_protocol("kd_efficientnet_lite0_20")).protocol

    def get():
        return cache.features(protocol, lambda: open_dataset(run.parent.parent / "data"), extractor, lambda: None)

    expected = get()
    [path] = (tmp_path / "cache").iterdir()
    np.savez(path, features=np.zeros((60, 1000), np.float32))
    assert np.array_equal(get(), expected)
