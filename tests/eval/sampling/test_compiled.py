"""Compiled sampling: the same images up to rounding, a protocol of its own, and a clear word where no compiler is."""

import pytest
import torch

from eval.backlog import Selection, jobs_of_run
from eval.protocol import parse_protocol
from eval.sampling.images import load_network, sample_images
from eval.service.runner import Runner
from eval.settings import EvaluationSettings
from tests.support.evaluation import make_run

EAGER, COMPILED = (parse_protocol(f"fd_efficientnet_lite0_12_ddim2{suffix}") for suffix in ("", "_compiled"))
SETTINGS = EvaluationSettings(device="cpu", num_threads=1, block_images=8, num_bootstrap=0)


def evaluate(run, protocol):
    [job] = jobs_of_run(run, [protocol], Selection())
    return Runner(SETTINGS, upload=lambda run_directory: None).run(job)


@pytest.mark.needs("g++")
def test_a_compiled_network_draws_the_same_images_and_its_number_stands_apart(tmp_path):
    torch.set_num_threads(1)
    run = make_run(tmp_path / "runs", steps=(100,))
    checkpoint = next((run / "checkpoints").glob("step-*"))
    eager = sample_images(load_network(checkpoint, EAGER, "cpu"), EAGER, 0, 12)
    compiled = load_network(checkpoint, COMPILED, "cpu")
    # Blocks of eight, the last one short: a compiled network draws full ones and drops the rest.
    parts = [sample_images(compiled, COMPILED, first, count, 8) for first, count in ((0, 8), (8, 4))]
    assert (torch.cat(parts).int() - eager.int()).abs().max() <= 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1

    results = [evaluate(run, protocol) for protocol in (EAGER, COMPILED)]
    assert [result["status"] for result in results] == ["done", "done"]
    assert results[1]["value"] == pytest.approx(results[0]["value"], rel=1e-2)
    assert results[0]["protocol"]["digest"] != results[1]["protocol"]["digest"]
    assert results[1]["protocol"]["name"].endswith("_compiled")


def test_without_a_compiler_the_evaluation_is_blocked_and_says_what_to_do(tmp_path, monkeypatch):
    run = make_run(tmp_path / "runs", steps=(100,))
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = evaluate(run, COMPILED)
    assert result["status"] == "blocked"
    assert "no-such-compiler, which is not on the PATH" in result["reason"]
    assert evaluate(run, EAGER)["status"] == "done"
