"""Packing on Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.code import ROOT
from data_pipeline.packing.pack import PackOptions, pack
from data_pipeline.sources.source import FolderSource
from tests.support.data import tree, write_folder

SMALL = PackOptions(image_size=8, samples_per_shard=7)


@pytest.mark.ray
def test_a_ray_cluster_packs_the_same_bytes(tmp_path: Path) -> None:
    write_folder(tmp_path / "in", 20)
    pack(FolderSource(tmp_path / "in"), tmp_path / "here", SMALL)
    command = [sys.executable, "-m", "data_pipeline", "pack", "in", "ray", "--ray", "--image-size", "8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [*command, "--samples-per-shard", "7"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "ray") == tree(tmp_path / "here")
