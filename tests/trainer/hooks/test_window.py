"""Averages between logged steps: as their definition says, and the same for a run that was stopped in between."""

import json
from dataclasses import asdict

import pytest
import torch

from trainer.hooks.window import WindowRecorder

Step = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_steps(num_steps: int) -> list[Step]:
    torch.manual_seed(0)
    return [(torch.randint(0, 10**6, (12,)), torch.rand(12), torch.rand(())) for _ in range(num_steps)]


def recorded(steps: list[Step], begun: dict | None = None) -> WindowRecorder:
    recorder = WindowRecorder(lambda counters: counters % 1000, 1000, 1, begun)
    for step in steps:
        recorder.add(*step)
    return recorder


def test_averages_are_means_over_all_images_of_all_steps() -> None:
    steps = random_steps(7)
    counters, losses = (torch.cat([step[i] for step in steps]) for i in (0, 1))
    t = counters % 1000
    found = recorded(steps).take().averages()
    assert found["train/loss"] == pytest.approx(losses.double().mean().item(), rel=1e-12)
    for quartile in range(4):
        own = losses.double()[(t >= 250 * quartile) & (t < 250 * (quartile + 1))]
        assert found[f"train/loss_quartile_{quartile + 1}"] == pytest.approx(own.mean().item(), rel=1e-12)
    norms = torch.stack([step[2] for step in steps]).double()
    assert found["train/grad_norm"] == pytest.approx(norms.mean().item(), rel=1e-6)


def test_a_quartile_without_a_draw_has_no_average() -> None:
    steps = [(torch.full((3,), 999), torch.ones(3), torch.ones(()))]
    found = recorded(steps).take().averages()
    assert [name for name in found if "quartile" in name] == ["train/loss_quartile_4"]


@pytest.mark.parametrize("stop", range(8))
def test_a_window_that_a_checkpoint_cuts_gives_the_same_averages_to_the_bit(stop: int) -> None:
    steps = random_steps(7)
    before = recorded(steps[:stop]).window()
    after = recorded(steps[stop:], json.loads(json.dumps(asdict(before))))
    assert after.take() == recorded(steps).take()
    assert after.window().num_steps == 0
