"""One evaluation from lease to result file, spool and grid: recorded whatever happens, resumed where it was."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.lease import try_lease
from cluster.tracking.uploader import read_metrics
from common.files import read_json
from data_pipeline.storage.shards import open_dataset
from eval.backlog import Selection, pending_jobs
from eval.metrics.extractor import build_extractor
from eval.metrics.reference import image_batches
from eval.metrics.statistics import FeatureStatistics, statistics_distance
from eval.metrics.weights import INCEPTION_FILE
from eval.protocol import parse_protocol
from eval.results import grid_path, read_result
from eval.sampling.images import sample_images
from eval.service.runner import Runner
from models.snapshot import load_snapshot
from tests.support.evaluation import PROTOCOL, SETTINGS, job_of, make_data, make_run, runner
from tests.support.reference.inception import make_inception


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs", steps=(100,))


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
    for folder, suffix in (("samples", "png"), ("evaluations", "json")):
        [artifact] = client.list_artifacts(found.info.run_id, f"{folder}/{PROTOCOL.name}")
        assert artifact.path == f"{folder}/{PROTOCOL.name}/step-00000100.{suffix}"


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

    from cluster.tracking.uploader import Uploader

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


def test_a_checkpoint_deleted_under_the_evaluation_is_recorded_as_skipped(run):
    job = job_of(run)
    shutil.rmtree(job.checkpoint)
    result = runner().run(job)
    assert result["status"] == "skipped"
    assert "deleted" in result["reason"]


def test_another_data_set_than_the_runs_is_refused(run):
    shutil.rmtree(run.parent.parent / "data")
    make_data(run.parent.parent / "data", num_images=50)
    result = runner().run(job_of(run))
    assert result["status"] == "failed"
    assert "put the original data back" in result["reason"]


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
    assert result["interval"]["low"] <= result["value"] <= result["interval"]["high"]
    names = [name for name in read_metrics(run) if name.startswith(f"eval/{family}_20_ddim2")]
    assert names
