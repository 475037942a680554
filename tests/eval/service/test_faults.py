"""What may go wrong in the middle of an evaluation: damage, kills, stops, divergence: recorded, or gone on with."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from cluster.storage import commit_directory
from cluster.tracking.uploader import read_metrics
from common.files import read_json, write_json_atomic
from eval.protocol import Protocol, parse_protocol
from eval.results import MAX_ATTEMPTS, read_result
from eval.sampling.blocks import BlockWorker, missing_blocks
from eval.sampling.evaluation import run_here
from eval.service import runner as runner_module
from eval.settings import EvaluationSettings
from models.networks.table import build_model
from models.snapshot import write_snapshot
from tests.support.evaluation import DIFFUSION, MODEL, PROTOCOL, SETTINGS, job_of, make_run, runner

FAST_PROTOCOL = parse_protocol("bits_per_dim_20")
"""As many blocks, without a feature network."""


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs", steps=(100,))


def test_a_damaged_checkpoint_fails_by_name_and_is_left_after_some_attempts(run):
    job = job_of(run)
    weights = job.checkpoint / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    results = [runner().run(job) for _ in range(MAX_ATTEMPTS)]
    assert [result["status"] for result in results] == ["failed"] * MAX_ATTEMPTS
    assert "ema.safetensors" in results[0]["reason"]
    assert [result["attempts"] for result in results] == [1, 2, 3]


def killed(run: Path, num_blocks: int, protocol: Protocol = FAST_PROTOCOL) -> None:
    """An evaluator in a process that is killed, as by the kernel, once it has finished `num_blocks` blocks."""

    def run_blocks(checkpoint, protocol, folder, settings, blocks, report_alive):
        worker = BlockWorker(checkpoint, protocol, folder, settings)
        for block in blocks[:num_blocks]:
            worker.run(block)
            yield block
        os.kill(os.getpid(), signal.SIGKILL)

    def evaluate():
        torch.set_num_threads(1)
        runner(run_blocks=run_blocks).run(job_of(run, protocol))

    process = multiprocessing.get_context("fork").Process(target=evaluate)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_an_evaluation_that_kills_its_evaluators_is_given_up(run):
    for _ in range(MAX_ATTEMPTS):
        killed(run, num_blocks=0)
    result = runner().run(job_of(run, FAST_PROTOCOL))
    assert result["status"] == "failed"
    assert "died" in result["reason"]


def test_kills_do_not_count_against_an_evaluation_that_gets_on(run):
    """Killed after each of its three blocks, then once more at the scores."""
    for _ in range(MAX_ATTEMPTS):
        killed(run, num_blocks=1)
    killed(run, num_blocks=0)
    result = runner().run(job_of(run, FAST_PROTOCOL))
    assert (result["status"], result["num_blocks_resumed"]) == ("done", 3)


def test_killed_in_the_middle_and_resumed_gives_the_same_number_bit_for_bit(tmp_path):
    torch.set_num_threads(1)
    whole = runner().run(job_of(make_run(tmp_path / "whole" / "runs", steps=(100,))))
    run = make_run(tmp_path / "killed" / "runs", steps=(100,))
    killed(run, 2, PROTOCOL)
    job = job_of(run)
    assert job.lease_path.exists()
    seconds = json.loads((job.work_folder / "blocks-of-8" / "seconds.json").read_text())
    resumed = runner().run(job)
    assert resumed["num_blocks_resumed"] == 2
    assert resumed["attempts"] == 1
    assert resumed["value"] == whole["value"]
    assert resumed["interval"] == whole["interval"]
    assert resumed["wall_seconds"] > resumed["sampling_seconds"] > seconds > 0  # of both sessions


def test_a_stop_ends_within_a_step_of_sampling_and_keeps_the_finished_blocks(run):
    job = job_of(run)
    num_steps = PROTOCOL.num_sampling_steps
    asked = []

    def in_the_middle_of_the_third_block():
        asked.append(1)
        return len(asked) > 2 * (num_steps + 1) + num_steps // 2

    assert runner(stop_requested=in_the_middle_of_the_third_block).run(job) is None
    assert len(asked) == 2 * (num_steps + 1) + num_steps // 2 + 1
    assert not job.result_path.exists()
    assert not job.lease_path.exists()
    folder = job.work_folder / "blocks-of-8"
    assert missing_blocks(folder, job.protocol, SETTINGS) == [2]
    assert runner().run(job)["num_blocks_resumed"] == 2


def test_out_of_memory_is_a_failed_evaluation_that_is_tried_again(run):
    def run_blocks(*_):
        raise MemoryError("cannot allocate 8 GiB")

    job = job_of(run)
    assert runner(run_blocks=run_blocks).run(job)["reason"] == "MemoryError: cannot allocate 8 GiB"
    again = runner().run(job)
    assert (again["status"], again["attempts"]) == ("done", 2)


@pytest.mark.parametrize("name", ["discard_work", "_spool_result"])
def test_a_kill_after_the_result_is_written_loses_no_point_and_leaves_no_folder(run, monkeypatch, name):
    job = job_of(run, FAST_PROTOCOL)
    with monkeypatch.context() as patch:

        def die(*_):
            raise KeyboardInterrupt

        patch.setattr(runner_module, name, die)
        with pytest.raises(KeyboardInterrupt):
            runner().run(job)
    assert read_result(job.result_path)["status"] == "done"
    assert job.work_folder.exists()
    for _ in range(2):
        result = runner().run(job)
    [(step, value, _)] = read_metrics(run)[f"eval/{FAST_PROTOCOL.name}"]
    assert (step, value) == (100, result["value"])
    [spool] = (run / "spool").glob("eval-*.jsonl")
    sent = [json.loads(line).get("path") for line in spool.open()]
    assert sent.count(str(job.result_path.relative_to(run))) == 1
    assert not job.work_folder.exists()


@pytest.mark.parametrize("name", ["fd_efficientnet_lite0_16_ddim2", "fd_efficientnet_lite0_16", "bits_per_dim_16"])
def test_a_checkpoint_that_has_diverged_fails_by_name(run, name):
    tensors = {key: torch.full_like(value, torch.nan) for key, value in build_model(MODEL).named_parameters()}

    def write(folder):
        write_snapshot(folder, tensors, MODEL, DIFFUSION, {"step": 300})

    commit_directory(run / "checkpoints", "step-00000300-aaaa", write, {"step": 300})
    result = runner().run(job_of(run, parse_protocol(name)))
    assert (result["step"], result["status"]) == (300, "failed")
    assert result["reason"] == "the network gives values that are not finite"


def test_data_that_are_away_block_and_the_evaluation_is_made_once_they_are_back(run):
    data, job = run.parent.parent / "data", job_of(run, FAST_PROTOCOL)
    data.rename(data.with_name("away"))
    for _ in range(MAX_ATTEMPTS + 1):
        result = runner().run(job)
        assert result["status"] == "blocked"
        assert "manifest.json is missing" in result["reason"]
    data.with_name("away").rename(data)
    assert runner().run(job)["status"] == "done"


@pytest.mark.parametrize("family", ["fd_efficientnet_lite0", "kd_efficientnet_lite0", "is_efficientnet_lite0"])
def test_a_stop_is_obeyed_while_the_score_is_worked_out(run, family):
    job = job_of(run, parse_protocol(f"{family}_16_ddim2"))
    folder, asked = job.work_folder / "blocks-of-8", []

    def sampled():
        if len(list(folder.glob("block-*.npy"))) == 2:
            asked.append(1)
        return len(asked) > 3  # the end of the last block, then the reference or the bootstrap

    settings = EvaluationSettings(device="cpu", num_threads=1, block_images=8, num_bootstrap=20)
    assert runner(settings, stop_requested=sampled).run(job) is None
    assert not job.result_path.exists()
    assert runner(settings).run(job)["num_blocks_resumed"] == 2


def test_an_evaluator_that_has_lost_its_lease_writes_nothing(run):
    """Its machine slept; another took the job over and is at work."""
    job = job_of(run, FAST_PROTOCOL)

    def run_blocks(checkpoint, protocol, folder, settings, blocks, report_alive):
        write_json_atomic(job.lease_path, {**read_json(job.lease_path), "token": "another's"})
        yield from run_here(checkpoint, protocol, folder, settings, blocks, report_alive)

    assert runner(run_blocks=run_blocks).run(job) is None
    assert not job.result_path.exists()
    assert read_json(job.lease_path)["token"] == "another's"
