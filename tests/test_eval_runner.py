"""One evaluation from lease to result file, spool and grid: recorded whatever happens, resumed where it was."""

import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.lease import try_lease
from cluster.storage import read_json
from cluster.tracking import read_metrics
from data_pipeline.shards import open_dataset
from eval.backlog import MAX_ATTEMPTS, Selection, jobs_of_run, pending_jobs
from eval.blocks import BlockWorker, block_path, missing_blocks
from eval.features import build_extractor
from eval.protocol import parse_protocol
from eval.reference import ReferenceCache, image_batches
from eval.results import grid_path, read_result
from eval.runner import Runner
from eval.sampling import sample_images
from eval.settings import EvaluationSettings
from eval.statistics import FeatureStatistics, statistics_distance
from eval.weights import INCEPTION_FILE
from models.snapshot import load_snapshot
from tests.eval_support import make_run
from tests.inception_support import make_inception

SETTINGS = EvaluationSettings(device="cpu", num_threads=1, block_images=8, num_bootstrap=4)
PROTOCOL = parse_protocol("fd_efficientnet_lite0_20_ddim4")


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs", steps=(100,))


def runner(settings=SETTINGS, **options):
    """An evaluator that leaves its points in the spool: making an MLflow database takes seconds."""
    return Runner(settings, upload=lambda run_directory: None, **options)


def job_of(run, protocol=PROTOCOL):
    return jobs_of_run(run, [protocol], Selection())[0]


def test_the_number_is_the_distance_between_samples_and_every_real_image(run):
    job = job_of(run)
    result = runner().run(job)
    extractor = build_extractor(PROTOCOL)
    sampled = extractor(sample_images(load_snapshot(job.checkpoint), PROTOCOL, 0, 20))
    dataset = open_dataset(run.parent.parent / "data")
    real = torch.cat([extractor(batch) for batch in image_batches(dataset, range(len(dataset)))])
    expected = statistics_distance(FeatureStatistics.of(sampled), FeatureStatistics.of(real))
    assert result["status"] == "done"
    assert result["value"] == pytest.approx(expected, rel=1e-6)
    assert result["num_reference_images"] == 60
    assert result["interval"]["low"] < result["value"] < result["interval"]["high"]
    assert any("20 sampled images" in warning for warning in result["warnings"])


def test_everything_that_defines_and_prices_the_number_is_in_its_file(run):
    job = job_of(run)
    runner().run(job)
    result = json.loads(job.result_path.read_text())
    protocol = result["protocol"]
    assert job.result_path.name == f"{protocol['digest']}.json"
    assert (protocol["num_samples"], protocol["sampler"], protocol["num_sampling_steps"]) == (20, "ddim", 4)
    assert protocol["reference_digest"] == json.loads((run / "run.json").read_text())["manifest_digest"]
    assert len(protocol["extractor_sha256"]) == 64
    assert result["step"] == 100
    assert result["provenance"]["ema"]["initial_weight_share"] == 0.25
    assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert result["wall_seconds"] > 0
    assert result["images_per_second"] > 0


def test_number_and_grid_reach_the_runs_spool_at_the_checkpoints_step(run):
    job = job_of(run)
    result = runner().run(job)
    [(step, value, _)] = read_metrics(run)[f"eval/{PROTOCOL.name}"]
    assert (step, value) == (100, result["value"])
    grid = Image.open(grid_path(run, job.checkpoint.name, job.protocol))
    assert grid.size[0] >= 256
    sent = [json.loads(line) for path in (run / "spool").glob("eval-*.jsonl") for line in path.open()]
    artifacts = [event["path"] for event in sent if event["type"] == "artifact"]
    assert str(grid_path(run, job.checkpoint.name, job.protocol).relative_to(run)) in artifacts
    assert not job.work_folder.exists()
    assert not job.lease_path.exists()


def test_numbers_arrive_in_mlflow_in_the_runs_one_run(run):
    from mlflow import MlflowClient

    Runner(SETTINGS).run(job_of(run))
    client = MlflowClient(json.loads((run / "run.json").read_text())["tracking_uri"])
    [experiment] = [e for e in client.search_experiments() if e.name == "tests"]
    [found] = client.search_runs([experiment.experiment_id])
    [point] = client.get_metric_history(found.info.run_id, f"eval/{PROTOCOL.name}")
    assert point.step == 100
    assert client.list_artifacts(found.info.run_id, "samples/step-00000100")


def test_with_mlflow_away_the_result_is_kept_and_logged_later(run, tmp_path):
    described = json.loads((run / "run.json").read_text())
    blocker = tmp_path / "not-a-folder"
    blocker.write_text("")
    (run / "run.json").write_text(json.dumps(described | {"tracking_uri": f"sqlite:///{blocker}/mlflow.db"}))
    job = job_of(run)
    assert Runner(SETTINGS).run(job)["status"] == "done"
    assert read_result(job.result_path)["status"] == "done"
    (run / "run.json").write_text(json.dumps(described))
    from mlflow import MlflowClient

    from cluster.tracking import Uploader

    [(_, value, seconds)] = read_metrics(run)[f"eval/{PROTOCOL.name}"]
    assert Uploader(run).drain() > 0
    assert not Uploader(run).pending()
    client, run_id = MlflowClient(described["tracking_uri"]), read_json(run / "spool" / "mlflow.json")["run_id"]
    [point] = client.get_metric_history(run_id, f"eval/{PROTOCOL.name}")
    assert (point.step, point.value, point.timestamp) == (100, value, int(seconds * 1000))


def test_a_result_that_is_there_is_not_made_again(run):
    job = job_of(run)
    first = runner().run(job)
    shutil.rmtree(job.checkpoint)
    assert runner().run(job) == json.loads(json.dumps(first))


def test_a_job_another_evaluator_holds_is_left_to_it(run):
    job = job_of(run)
    with try_lease(job.lease_path):
        assert runner().run(job) is None
    assert not job.result_path.exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_weights_that_are_not_there_block_and_the_evaluation_is_made_once_they_are(run, tmp_path, damaged):
    sha256 = make_inception(tmp_path)
    file = tmp_path / INCEPTION_FILE
    good = file.read_bytes()
    if damaged:
        file.write_bytes(good[:-1000])
    else:
        file.unlink()
    job = job_of(run, replace(parse_protocol("fid_clean_16_ddim2"), extractor_sha256=sha256))
    evaluator = runner(replace(SETTINGS, weights_folder=tmp_path))
    blocked = evaluator.run(job)
    assert blocked["status"] == "blocked"
    assert "fetch-weights" in blocked["reason"]
    assert "value" not in blocked
    assert not job.work_folder.exists() or not list(job.work_folder.rglob("*.npy"))
    assert f"eval/{job.protocol.name}" not in read_metrics(run)
    selection = Selection(retry_seconds=60)
    assert pending_jobs([job], selection, blocked["time"] + 59) == []
    assert pending_jobs([job], selection, blocked["time"] + 60) == [job]
    file.write_bytes(good)
    done = evaluator.run(job)
    assert (done["status"], done["attempts"]) == ("done", 1)
    assert read_metrics(run)[f"eval/{job.protocol.name}"][0][1] == done["value"]


def test_imported_statistics_that_are_not_there_block_before_an_image_is_drawn(run):
    job = job_of(run, parse_protocol("fd_efficientnet_lite0_16_ddim2_npz0123456789abcdef"))
    result = runner(run_blocks=lambda *_: pytest.fail("sampled")).run(job)
    assert result["status"] == "blocked"
    assert "import-reference" in result["reason"]


def test_a_damaged_checkpoint_fails_by_name_and_is_left_after_some_attempts(run):
    job = job_of(run)
    weights = job.checkpoint / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    results = [runner().run(job) for _ in range(MAX_ATTEMPTS)]
    assert [result["status"] for result in results] == ["failed"] * MAX_ATTEMPTS
    assert "ema.safetensors" in results[0]["reason"]
    assert [result["attempts"] for result in results] == [1, 2, 3]


def test_an_evaluation_that_kills_its_evaluators_is_given_up(run):
    job = job_of(run)
    dead = {"token": "t", "heartbeat": 0.0, "machine": "elsewhere", "pid": 1, "attempt": MAX_ATTEMPTS}
    job.lease_path.parent.mkdir(parents=True)
    job.lease_path.write_text(json.dumps(dead))
    result = runner().run(job)
    assert result["status"] == "failed"
    assert "died" in result["reason"]


def test_a_checkpoint_deleted_under_the_evaluation_is_recorded_as_skipped(run):
    job = job_of(run)
    shutil.rmtree(job.checkpoint)
    result = runner().run(job)
    assert result["status"] == "skipped"
    assert "deleted" in result["reason"]


def test_another_data_set_than_the_runs_is_refused(run):
    from tests.eval_support import make_data

    shutil.rmtree(run.parent.parent / "data")
    make_data(run.parent.parent / "data", num_images=50)
    result = runner().run(job_of(run))
    assert result["status"] == "failed"
    assert "put the original data back" in result["reason"]


def kill_in_the_middle(run: Path) -> None:
    """An evaluator that is killed, as by the kernel, while it works on its third block."""

    def run_blocks(checkpoint, protocol, folder, settings, blocks, beat):
        worker = BlockWorker(checkpoint, protocol, folder, settings)
        for block in blocks:
            if block == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            worker.run(block)
            yield block

    torch.set_num_threads(1)
    runner(run_blocks=run_blocks).run(job_of(run))


def test_killed_in_the_middle_and_resumed_gives_the_same_number_bit_for_bit(tmp_path):
    torch.set_num_threads(1)
    whole = runner().run(job_of(make_run(tmp_path / "whole" / "runs", steps=(100,))))
    run = make_run(tmp_path / "killed" / "runs", steps=(100,))
    process = multiprocessing.get_context("fork").Process(target=kill_in_the_middle, args=(run,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    job = job_of(run)
    assert job.lease_path.exists()
    resumed = runner().run(job)
    assert resumed["num_blocks_resumed"] == 2
    assert resumed["attempts"] == 2
    assert resumed["value"] == whole["value"]
    assert resumed["interval"] == whole["interval"]


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


def test_bits_per_dim_score_real_images_and_sample_none(run):
    from models.likelihood import variational_bound

    job = job_of(run, parse_protocol("bits_per_dim_20"))
    result = runner().run(job)
    snapshot, dataset = load_snapshot(job.checkpoint), open_dataset(run.parent.parent / "data")
    images = np.stack([dataset.read(3 * place) for place in range(20)])
    x_0 = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    bound = variational_bound(snapshot.model, snapshot.diffusion, x_0, torch.arange(20), seed=0)
    assert result["status"] == "done"
    assert result["value"] == pytest.approx(float(bound.total.mean()), rel=1e-5)
    assert result["interval"]["low"] < result["value"] < result["interval"]["high"]
    assert not grid_path(run, job.checkpoint.name, job.protocol).exists()
    assert read_metrics(run)["eval/bits_per_dim_20"][0][:2] == (100, result["value"])


def test_scoring_more_images_than_there_are_says_so(run):
    result = runner().run(job_of(run, parse_protocol("bits_per_dim_1k")))
    assert result["status"] == "failed"
    assert "60 of the data set" in result["reason"]


@pytest.mark.parametrize("family", ["kd_efficientnet_lite0", "is_efficientnet_lite0", "pr_efficientnet_lite0"])
def test_every_other_metric_gives_a_finite_number(run, family):
    result = runner().run(job_of(run, parse_protocol(f"{family}_20_ddim2")))
    assert result["status"] == "done", result["reason"]
    assert all(np.isfinite(value) for value in result["values"].values())
    names = [name for name in read_metrics(run) if name.startswith(f"eval/{family}_20_ddim2")]
    assert names
