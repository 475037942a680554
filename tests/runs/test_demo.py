"""What `make demo` promises: on a demo of fewer steps, and, where there is time, on the demo itself."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from cluster.run_directory import step_of
from cluster.storage import complete_directories
from common.code import ROOT
from common.files import read_json

pytestmark = [pytest.mark.heavy, pytest.mark.ray, pytest.mark.timeout(1800)]


def steps_of_checkpoints(demo: Path) -> list[int]:
    return [step_of(path) for path in complete_directories(demo / "runs" / "demo-digits" / "checkpoints")]


WHOLE, SHORT = 2000, 300
EVERY_STEPS = {WHOLE: 200, SHORT: 150}
# By the number of steps: what share of the samples a judge must be sure of, and what is left of the first distance.
PROMISES = {WHOLE: (0.5, 1 / 3), SHORT: (0.15, 0.85)}


def run_demo(folder: Path, num_steps: int) -> subprocess.CompletedProcess[str]:
    every = ("--checkpoint.every_steps", str(EVERY_STEPS[num_steps]))
    options = [] if num_steps == WHOLE else ["--train.num_steps", str(num_steps), *every]
    code = "import sys; from pathlib import Path; from cluster.demo import run_demo; "
    code += "run_demo('digits', Path(sys.argv[1]), sys.argv[2:])"
    command = [sys.executable, "-c", code, str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=[SHORT, pytest.param(WHOLE, marks=pytest.mark.slow)])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    finished = run_demo(folder, request.param)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return folder


def num_steps_of(demo: Path) -> int:
    return read_json(demo / "runs" / "demo-digits" / "run.json")["num_steps"]


def test_the_samples_are_digits_of_all_ten_classes(demo: Path) -> None:
    digits = load_digits()
    judge = LogisticRegression(max_iter=5000).fit(digits.data / 16, digits.target)
    images = np.load(demo / "runs" / "demo-digits" / "samples" / "samples.npz")["images"]
    assert images.shape == (256, 8, 8, 1)
    assert images.dtype == np.uint8
    confidence = judge.predict_proba(images.reshape(256, 64) / 255)
    assert (confidence.max(axis=1) >= 0.9).mean() >= PROMISES[num_steps_of(demo)][0]
    assert set(confidence.argmax(axis=1)) == set(range(10))


def test_the_distance_falls(demo: Path) -> None:
    results = sorted((demo / "runs" / "demo-digits" / "evals").glob("step-*/*.json"))
    values = [read_json(path)["value"] for path in results]
    assert len(values) == num_steps_of(demo) // EVERY_STEPS[num_steps_of(demo)]
    assert values[-1] <= values[0] * PROMISES[num_steps_of(demo)][1]


def test_one_mlflow_run_holds_everything(demo: Path) -> None:
    run = read_json(demo / "runs" / "demo-digits" / "run.json")
    client = MlflowClient(run["tracking_uri"])
    experiment = client.get_experiment_by_name(run["experiment"])
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.global_batch_size"] == "64"
    assert found.data.tags["manifest_digest"] == run["manifest_digest"]
    wanted = {"train/loss", "train/learning_rate", "train/grad_norm", "train/images_per_second"}
    assert wanted <= found.data.metrics.keys()
    distance = "eval/fd_efficientnet_lite0_512_ddim20"
    steps = [point.step for point in client.get_metric_history(found.info.run_id, distance)]
    num_steps = num_steps_of(demo)
    every = EVERY_STEPS[num_steps]
    assert sorted(steps) == steps_of_checkpoints(demo) == list(range(every, num_steps + 1, every))
    folder = f"samples/{distance.removeprefix('eval/')}"
    grids = [a.path for a in client.list_artifacts(found.info.run_id, folder)]
    assert sorted(grids) == [f"{folder}/step-{step:08d}.png" for step in steps_of_checkpoints(demo)]
    assert found.data.tags.keys() >= {"mlflow.source.name", "mlflow.note.content", "mlflow.user"}
    assert found.inputs is not None
    (given,) = found.inputs.dataset_inputs
    assert run["manifest_digest"].startswith(given.dataset.digest)


def test_the_report_stands_alone(demo: Path) -> None:
    page = (demo / "reports" / "demo-digits.html").read_text()
    run = read_json(demo / "runs" / "demo-digits" / "run.json")
    assert run["manifest_digest"] in page
    assert "<svg" in page
    assert "data:image/png;base64," in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)


def test_plain_webdataset_reads_the_shards(demo: Path) -> None:
    import webdataset

    shards = sorted(str(path) for path in (demo / "data" / "digits").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("l8").to_tuple("png", "json"))
    assert len(samples) == 1797
    assert sorted({label["label"] for _, label in samples}) == list(range(10))
    assert samples[0][0].shape == (8, 8)


def test_a_second_time_it_says_that_it_is_done(demo: Path) -> None:
    before = read_json(demo / "runs" / "demo-digits" / "run.json")
    again = run_demo(demo, num_steps_of(demo))
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert f"finished already at step {num_steps_of(demo)}" in again.stdout
    after = read_json(demo / "runs" / "demo-digits" / "run.json")
    assert json.dumps(after) == json.dumps(before)
