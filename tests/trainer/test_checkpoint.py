"""Which checkpoint is taken, and which are deleted, whatever else lies in the folder; on real files."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from cluster.launch import Worker
from cluster.run_directory import complete_checkpoints, step_of
from cluster.storage import DamagedError
from common.files import read_json, write_json_atomic
from data_pipeline.loader import Batch
from models.diffusion import GaussianDiffusion
from models.networks.table import build_model
from tests.support.trainer import TINY_MODEL, tiny_config
from trainer.checkpoint import CheckpointStore, Resumed, capture
from trainer.engines.ddp import DdpEngine
from trainer.hooks.window import Window
from trainer.objective import Objective

CPU = Worker(0, 1, torch.device("cpu"))


class Run:
    """A run whose checkpoints are made by hand."""

    def __init__(self, directory: Path, keep_last: int = 2, dtype: torch.dtype = torch.float32):
        kept = {"keep_last": keep_last, "keep_every_steps": 0}
        self.config = config = tiny_config(directory, directory, "run", checkpoint=kept)
        objective = Objective(GaussianDiffusion(config.diffusion), 0, True, dtype)
        self.directory = directory
        self.engine = DdpEngine(build_model(TINY_MODEL).to(dtype), objective, config, CPU)
        self.ema = self.engine.make_ema(config.ema)
        self.store = self.new_store()
        self.train(0)

    def train(self, step: int) -> None:
        self.engine.step(Batch(step, torch.arange(2), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)))
        self.ema.update()

    def save(self, step: int) -> Path:
        return self.store.save(capture(step, self.engine, self.ema, Window()))

    def new_store(self) -> CheckpointStore:
        return CheckpointStore(self.directory, self.config, None, {"config_digest": "c"})

    def restore(self) -> Resumed:
        """As the next attempt does it, which goes on with its own store."""
        self.store = self.new_store()
        return self.store.restore(self.engine, self.ema, CPU)


def test_copies_that_a_user_keeps_are_neither_resumed_nor_in_the_way(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = run.save(100)
    for name in ("best", "zz-keep", "step-00000900-copy-of-100"):
        shutil.copytree(first, first.with_name(name))
    run.save(200)
    run.save(300)
    assert run.restore().step == 300
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == [200, 300]
    assert {"best", "zz-keep", "step-00000900-copy-of-100"} <= {path.name for path in first.parent.iterdir()}


def test_retention_deletes_the_oldest_beyond_a_hundred_million_steps(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (99_999_998, 99_999_999, 100_000_000):
        run.save(step)
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == [99_999_999, 100_000_000]
    assert run.restore().step == 100_000_000


def unreadable(checkpoint: Path) -> None:
    """Its weights give an I/O error: the kernel's, for a process that reads where it has no memory."""
    weights = checkpoint / "model.safetensors"
    weights.unlink()
    weights.symlink_to("/proc/self/mem")
    record = read_json(checkpoint / "COMPLETE.json")
    record["files"]["model.safetensors"]["bytes"] = 0
    write_json_atomic(checkpoint / "COMPLETE.json", record)


def test_a_newest_checkpoint_that_cannot_be_read_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path)
    run.save(100)
    newest = run.save(200)
    unreadable(newest)
    assert run.restore().step == 100
    assert f"{newest} cannot be read: [Errno 5]" in caplog.text
    again = run.save(150)
    run.save(200)
    assert again in complete_checkpoints(tmp_path)  # the one passed over is not counted among the newest two


def test_where_no_checkpoint_can_be_read_training_does_not_start_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    unreadable(run.save(100))
    with pytest.raises(DamagedError, match="none of the 1 checkpoints"):
        run.restore()


def test_of_two_checkpoints_at_one_step_the_newer_is_resumed_and_kept(tmp_path: Path) -> None:
    """Their names end in random numbers, which say nothing of their age."""
    run = Run(tmp_path)
    older = run.save(100)
    named_last = older.rename(older.with_name("step-00000100-zzzz"))
    os.utime(named_last / "COMPLETE.json", (1e9, 1e9))
    run.train(1)
    newer = run.save(100)
    expected = {name: tensor.clone() for name, tensor in run.engine.model_state().items()}
    run.train(2)
    run.restore()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in run.engine.model_state().items())
    run.save(200)
    assert newer.exists()
    assert not named_last.exists()


def test_an_average_of_float64_comes_back_to_the_bit(tmp_path: Path) -> None:
    run = Run(tmp_path, dtype=torch.float64)
    run.train(1)
    run.train(2)
    expected = run.ema.named_state()
    checkpoint = run.save(3)
    run.train(3)
    run.restore()
    found = run.ema.named_state()
    assert all(found[name].dtype == torch.float64 for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (checkpoint / "ema_float64.safetensors").unlink()  # as older versions wrote it
    record = read_json(checkpoint / "COMPLETE.json")
    del record["files"]["ema_float64.safetensors"]
    write_json_atomic(checkpoint / "COMPLETE.json", record)
    run.restore()
    assert all(torch.equal(run.ema.named_state()[name], expected[name].float().double()) for name in expected)
