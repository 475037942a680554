"""Runs on remote data: the same losses as from disk, within the budget of the cache that the settings give."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.demo.sets import digits_source
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.storage.cache import FileCache
from data_pipeline.storage.manifest import Manifest
from eval.runs import open_images
from tests.support.servers.data_servers import fetched, nginx
from tests.support.trainer import losses, tiny_config, train_locally
from trainer.config.plan import plan
from trainer.config.sections import DataConfig

_NUM_IMAGES = 40


def packed(folder: Path) -> Manifest:
    """Ten shards of four digits."""
    return pack(digits_source(_NUM_IMAGES), folder, PackOptions(samples_per_shard=4))


@pytest.mark.needs("nginx")
def test_a_run_over_http_keeps_to_its_cache_budget_and_trains_the_same(tmp_path: Path) -> None:
    manifest = packed(tmp_path / "html" / "set")
    all_bytes = sum(shard.bytes + shard.index_bytes for shard in manifest.shards)
    budget, cache = all_bytes // 2, tmp_path / "cache"
    settings: dict[str, Any] = {"cache_folder": str(cache), "cache_gib": budget / 2**30, "memory_gib": 0.0}
    sections: dict[str, Any] = {"train": {"num_steps": 8}, "workers": {"num_workers": 2}}
    here = train_locally(tiny_config(tmp_path / "html" / "set", tmp_path / "runs", "here", **sections))
    with nginx(tmp_path) as url:
        config = tiny_config(tmp_path, tmp_path / "runs", "there", **sections)
        path = url.replace("://", "://user:secret@") + "/set"
        there = train_locally(replace(config, data=replace(config.data, path=path, **settings)))
        with open_images(there.directory) as dataset:
            assert dataset.read(0).shape == (8, 8, 1)
    assert losses(there.directory) == losses(here.directory)
    spooled = (there.directory / "spool" / "run.jsonl").read_text()
    assert url.replace("://", "://***@") + "/set" in spooled  # for MLflow
    assert "secret" not in spooled
    assert 0 < FileCache(cache, budget).total_bytes() <= budget
    requests = [fetched(tmp_path, shard.name) for shard in manifest.shards]
    assert min(requests) >= 1  # 8 steps of 12 are more than two epochs of 40
    assert max(requests) > 1  # half of the set fits: some shard was evicted and fetched again


@pytest.mark.needs("nginx")
def test_a_cache_too_small_for_a_shard_is_refused_before_workers_start(tmp_path: Path) -> None:
    manifest = packed(tmp_path / "html" / "set")
    with nginx(tmp_path) as url:
        config = tiny_config(tmp_path, tmp_path / "runs", "small")
        data = replace(config.data, path=f"{url}/set", cache_gib=(manifest.shards[0].bytes - 1) / 2**30)
        with pytest.raises(ValueError, match=r"images-\d+\.tar has \d+ bytes.*data\.cache_gib"):
            plan(replace(config, data=data), "tiny")
    assert not (tmp_path / "runs" / "small").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("cache_gib", 0.0), ("memory_gib", -1.0), ("num_threads", 0), ("num_prefetch_batches", 0)]
)
def test_data_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"data.{field} is {value}"):
        DataConfig(**{field: value})  # type: ignore[arg-type]
