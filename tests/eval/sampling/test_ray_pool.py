"""The Ray pool: any number of actors, and actors that die, give the same number bit for bit."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from eval.backlog import Selection, jobs_of_run
from eval.protocol import parse_protocol
from eval.sampling.blocks import missing_blocks, read_features
from eval.service.runner import Runner
from eval.settings import EvaluationSettings, PoolSettings
from tests.support.evaluation import make_run

pytestmark = [pytest.mark.heavy, pytest.mark.ray]

SETTINGS = EvaluationSettings(device="cpu", num_threads=1, block_images=4, num_bootstrap=2)
PROTOCOL = parse_protocol("fd_efficientnet_lite0_16_ddim2")


@pytest.fixture(scope="module")
def ray_here():
    """A cluster of this process alone."""
    import ray

    patch = pytest.MonkeyPatch()
    patch.delenv("RAY_ADDRESS", raising=False)
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
    patch.undo()


def job_in(folder: Path):
    return jobs_of_run(make_run(folder / "runs", steps=(100,)), [PROTOCOL], Selection())[0]


def test_one_actor_three_actors_and_none_give_the_same_number(ray_here, tmp_path):
    from eval.sampling.ray_pool import RayPool

    pools = {"none": None, "one": RayPool(PoolSettings(1)), "three": RayPool(PoolSettings(3))}
    results = {}
    for name, pool in pools.items():
        options = {"run_blocks": pool} if pool else {}
        runner = Runner(SETTINGS, upload=lambda run_directory: None, **options)
        results[name] = runner.run(job_in(tmp_path / name))
    assert {result["status"] for result in results.values()} == {"done"}
    assert len({result["value"] for result in results.values()}) == 1
    assert len({str(result["interval"]) for result in results.values()}) == 1


def test_actors_the_cluster_has_no_room_for_hold_nothing_up(ray_here, tmp_path):
    from eval.sampling.ray_pool import RayPool

    job, started = job_in(tmp_path), time.monotonic()

    def report_alive():
        assert time.monotonic() - started < 600

    actors = PoolSettings(4, cpus_per_actor=1.5)  # two fit
    blocks = RayPool(actors)(job.checkpoint, job.protocol, tmp_path, SETTINGS, [0, 1, 2, 3], report_alive)
    assert sorted(blocks) == [0, 1, 2, 3]


def test_no_room_for_any_actor_is_said_and_can_be_stopped(ray_here, tmp_path, monkeypatch, caplog):
    from eval.sampling import ray_pool as service_pool

    monkeypatch.setattr(service_pool, "_WARN_SECONDS", 0.0)
    job = job_in(tmp_path)

    def report_alive():
        raise TimeoutError

    pool = service_pool.RayPool(PoolSettings(1, cpus_per_actor=99))
    with pytest.raises(TimeoutError):
        list(pool(job.checkpoint, job.protocol, tmp_path, SETTINGS, [0], report_alive))
    assert "no 99 CPUs and 0 GPUs free" in caplog.text


def test_a_killed_actors_block_is_given_to_another(ray_here, tmp_path):
    from eval.sampling.ray_pool import RayPool

    job = job_in(tmp_path)
    folder = tmp_path / "blocks"
    folder.mkdir()
    blocks = RayPool(PoolSettings(1))(job.checkpoint, job.protocol, folder, SETTINGS, [0, 1, 2, 3])
    assert next(blocks) == 0
    os.kill(_worker_process(), signal.SIGKILL)
    assert sorted(blocks) == [1, 2, 3]
    assert missing_blocks(folder, job.protocol, SETTINGS) == []
    assert np.isfinite(read_features(folder, job.protocol, SETTINGS)).all()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_an_evaluator_killed_in_the_middle_is_resumed_by_any_number_of_actors_bit_for_bit(
    ray_here, tmp_path, before, after
):
    """SIGKILL of the whole evaluator, its actors with it, once some of its eight blocks are there."""
    settings = replace(SETTINGS, block_images=2)
    torch.set_num_threads(1)
    whole = Runner(settings, upload=lambda run_directory: None).run(job_in(tmp_path / "whole"))
    job = job_in(tmp_path / "killed")
    command = [
        *(sys.executable, "-m", "eval", "run", str(job.run_directory), "--protocol", PROTOCOL.name, "--device", "cpu"),
        *("--num-threads", "1", "--num-bootstrap", "2", "--block-images", "2", "--num-actors", str(before)),
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray_here.get_runtime_context().gcs_address}
    evaluator = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(job.work_folder.rglob("block-*.npy")):
        assert evaluator.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    evaluator.kill()
    evaluator.wait()
    assert not job.result_path.exists()
    from eval.sampling.ray_pool import RayPool

    resumed = Runner(settings, RayPool(PoolSettings(after)), upload=lambda run_directory: None).run(job)
    assert resumed["num_blocks_resumed"] >= 1
    assert resumed["attempts"] == 1  # the one that was killed had got on
    assert (resumed["value"], resumed["interval"]) == (whole["value"], whole["interval"])


def test_what_the_work_raises_reaches_the_evaluation(ray_here, tmp_path):
    job = job_in(tmp_path)
    weights = job.checkpoint / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    from eval.sampling.ray_pool import RayPool

    runner = Runner(SETTINGS, RayPool(PoolSettings(1)), upload=lambda run_directory: None)
    result = runner.run(job)
    assert result["status"] == "failed"
    assert "ema.safetensors" in result["reason"]


def _worker_process() -> int:
    """Process id of the one living actor of this test's own cluster."""
    [worker] = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::BlockWork")]
    return worker.pid


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's own use of pydantic
def test_ray_serve_shows_the_page_on_loopback(ray_here, tmp_path):
    from eval.web.serve import serving

    storage = job_in(tmp_path).run_directory.parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(storage, [PROTOCOL], Selection(), port) as url:
        with urllib.request.urlopen(f"{url}api/status", timeout=60) as answer:
            [run] = json.load(answer)["runs"]
        assert [job["status"] for job in run["queue"]] == ["waiting"]
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert b"Evaluations" in answer.read()
        listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
        assert listening == {"127.0.0.1"}
