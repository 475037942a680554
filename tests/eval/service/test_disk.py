"""A disk that is full, an evaluator killed before any change of the disk: nothing is lost, nothing is left over."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from cluster.run_directory import is_being_evaluated
from cluster.tracking.uploader import read_metrics
from eval.backlog import Selection
from eval.protocol import parse_protocol
from eval.results import MAX_ATTEMPTS, all_results
from eval.service.service import Service
from eval.settings import EvaluationSettings
from tests.support.evaluation import job_of, make_run, runner

FAST_PROTOCOL = parse_protocol("bits_per_dim_20")
SHORT_PROTOCOL = parse_protocol("bits_per_dim_2")
SMALL = EvaluationSettings(device="cpu", num_threads=1, block_images=2, num_bootstrap=2)
CHANGES = ("replace", "rename", "link", "unlink", "open", "mkdir", "rmdir")
"""What puts files in their place or takes them away."""


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs", steps=(100,))


def test_a_full_disk_blocks_and_does_not_count_against_the_checkpoint(run, monkeypatch):
    job = job_of(run, FAST_PROTOCOL)
    with monkeypatch.context() as patch:
        fill_disk(patch, "block-")
        for _ in range(MAX_ATTEMPTS + 1):
            result = runner().run(job)
            assert (result["status"], result["attempts"]) == ("blocked", 0)
            assert "free some space" in result["reason"]
    assert runner().run(job)["status"] == "done"


def test_a_result_that_a_full_disk_refuses_is_made_once_there_is_room(run, monkeypatch):
    job = job_of(run, FAST_PROTOCOL)
    with monkeypatch.context() as patch:
        fill_disk(patch, job.result_path.name)
        for _ in range(MAX_ATTEMPTS + 1):
            with pytest.raises(OSError, match="No space left"):
                runner().run(job)
    assert not job.result_path.exists()
    assert not list(job.result_path.parent.glob(".tmp-*"))
    assert not job.lease_path.exists()
    result = runner().run(job)
    assert (result["status"], result["attempts"], result["num_blocks_resumed"]) == ("done", 1, 3)


def test_a_full_disk_does_not_end_the_service_that_cannot_say_what_it_does(run, monkeypatch):
    fill_disk(monkeypatch, "evaluators")
    Service(run.parent, [SHORT_PROTOCOL], Selection(), runner(SMALL)).run_once()
    [result] = all_results(run)
    assert result["status"] == "done"


def fill_disk(patch, name: str) -> None:
    """Let no file whose name contains `name` be put in place."""
    replace = os.replace

    def refuse(source, destination):
        if name in os.fspath(destination):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, destination)

    patch.setattr(os, "replace", refuse)


def killed_before_change(run: Path, number: int) -> bool:
    """An evaluator in a process that is killed before it changes the disk for the `number`-th time; False if it ended
    before that."""

    def evaluate():
        torch.set_num_threads(1)
        num_left = [number]

        def killing(change):
            def changed(path, *arguments, **options):
                writes = change.__name__ != "open" or bool((arguments or (0,))[0] & (os.O_CREAT | os.O_APPEND))
                if writes and str(run) in str(path):
                    num_left[0] -= 1
                    if num_left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                return change(path, *arguments, **options)

            return changed

        for name in CHANGES:
            setattr(os, name, killing(getattr(os, name)))
        runner(SMALL).run(job_of(run, SHORT_PROTOCOL))

    process = multiprocessing.get_context("fork").Process(target=evaluate)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.heavy
def test_killed_at_any_moment_an_evaluation_ends_at_the_same_number_and_leaves_nothing(tmp_path):
    whole = make_run(tmp_path / "whole" / "runs", steps=(100,))
    expected = runner(SMALL).run(job_of(whole, SHORT_PROTOCOL))["value"]
    number = 0
    while True:
        run = make_run(tmp_path / str(number) / "runs", steps=(100,))
        was_killed = killed_before_change(run, number)
        Service(run.parent, [SHORT_PROTOCOL], Selection(), runner(SMALL)).run_once()
        [result] = all_results(run)
        assert (result["status"], result["value"]) == ("done", expected), number
        assert [point[:2] for point in read_metrics(run)[f"eval/{SHORT_PROTOCOL.name}"]] == [(100, expected)], number
        [folder] = (run / "evals").iterdir()
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        assert not left, (number, left)
        assert not is_being_evaluated(run, folder.name)
        if not was_killed:
            break
        number += 1
    assert number > 10
