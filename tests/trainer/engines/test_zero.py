from pathlib import Path

import pytest
import torch

from tests.support.trainer import NO_GRADIENT, digits, losses, tiny_config, train_locally
from tests.support.zero import Job, job_config, results, run_jobs, state
from trainer.config.config import semantics

STAGES = ("zero1", "zero2", "zero3")
STRATEGIES = ("ddp", *STAGES)
WORLDS = (1, 2, 3)
NUM_STEPS = 50
# 13 images: in one pass, or in parts of 4, of which the workers need different numbers.
PASSES = {"": {}, "-passes": {"max_images_per_pass": 4}}
# Seven images, since this costs more.
FLOAT64 = {"precision": "fp64", "global_batch_size": 7}
FLOAT64_PASSES = {"": {}, "-passes": {"max_images_per_pass": 2}}
FLOAT64_CASES = [(1, "-passes"), (2, ""), (2, "-passes"), (3, ""), (3, "-passes")]
SLICES = {"clip_scope": "slice", "clip_slice_images": 3, "max_grad_norm": 0.5, "warmup_steps": 0, "learning_rate": 2e-4}
SLICED_TRAIN = {"global_batch_size": 12, "max_images_per_pass": 2}
DROPOUT = {"dropout": 0.1}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all jobs, on three groups of workers: starting a group costs more than a job."""
    folder = tmp_path_factory.mktemp("zero")
    dropout = job_config("zero3", model=DROPOUT)
    run_jobs(
        folder,
        2,
        *same_run_jobs(2),
        *(Job(f"{stage}-poisoned", job_config(stage), stop=3, poisoned_rank=1) for stage in STAGES),
        Job("zero3-recomputed", job_config("zero3", model={"gradient_checkpointing": True}), stop=6),
        Job("zero3-unclipped", job_config("zero3", optim={"max_grad_norm": 0.0}), stop=4),
        Job("zero3-bf16", job_config("zero3", train={"precision": "bf16"}), stop=6),
        Job("zero3-warm", job_config("zero3", ema={"decay": 0.9, "warmup": True}), stop=6, follow_ema=True),
        Job("twice-a", dropout, stop=6),
        Job("twice-b", dropout, stop=6),
        Job("chain-ddp-2", job_config("ddp"), stop=7),
    )
    run_jobs(folder, 3, *same_run_jobs(3), Job("chain-zero3-3", job_config("zero3"), 7, 14, resume_from="chain-ddp-2"))
    run_jobs(
        folder,
        1,
        *same_run_jobs(1),
        Job("chain-zero1-1", job_config("zero1"), 14, NUM_STEPS, resume_from="chain-zero3-3"),
        Job("ddp-1-float64", job_config("ddp", train=FLOAT64), stop=NUM_STEPS),
        Job("plain-unclipped", job_config("ddp", optim={"max_grad_norm": 0.0}), stop=4),
        Job("plain-bf16", job_config("ddp", train={"precision": "bf16"}), stop=6),
    )
    return folder


def same_run_jobs(world_size: int) -> list[Job]:
    """Every engine on so many workers, with and without accumulation, and clipping slices."""
    sliced = {"optim": SLICES, "train": SLICED_TRAIN}
    whole = [
        Job(f"{strategy}-{world_size}{variant}", job_config(strategy, train=passes), stop=NUM_STEPS)
        for strategy in STRATEGIES
        for variant, passes in PASSES.items()
    ]
    slices = [Job(f"{strategy}-{world_size}-slices", job_config(strategy, **sliced), stop=6) for strategy in STRATEGIES]
    float64 = [
        Job(f"{strategy}-{world_size}{variant}-float64", job_config(strategy, train=FLOAT64 | passes), stop=NUM_STEPS)
        for strategy in STRATEGIES
        for variant, passes in FLOAT64_PASSES.items()
        if (world_size, variant) in FLOAT64_CASES
    ]
    return whole + slices + float64


def assert_same_states(folder: Path, expected: str, found: str, weights: bool = False) -> None:
    """weights: those too that are trained, to 1e-5.

    In 50 steps of float32 Adam makes more of the rounding noise of single gradients near 0 (1.03e-5 was seen);
    in float64 the weights are compared after 50 steps too.
    """
    for kind, tolerance in ((("model", 1e-5),) if weights else ()) + (("ema", 1e-6), ("optimizer", 1e-6)):
        ours, theirs = state(folder, found, kind), state(folder, expected, kind)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            if not name.endswith(NO_GRADIENT):
                torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=tolerance, msg=f"{kind} {name}")


def assert_equal_states(folder: Path, one: str, other: str) -> None:
    for kind in ("model", "optimizer", "ema"):
        a, b = state(folder, one, kind), state(folder, other, kind)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("variant", PASSES)
@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_engine_on_any_number_of_workers_trains_the_same_run(
    ran: Path, strategy: str, world_size: int, variant: str
) -> None:
    plain, found = results(ran, "ddp-1"), results(ran, f"{strategy}-{world_size}{variant}")
    assert len(found["losses"]) == NUM_STEPS
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    assert_same_states(ran, "ddp-1", f"{strategy}-{world_size}{variant}")


@pytest.mark.parametrize(("world_size", "variant"), FLOAT64_CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_float64_only_the_order_of_sums_is_left(ran: Path, strategy: str, world_size: int, variant: str) -> None:
    name = f"{strategy}-{world_size}{variant}-float64"
    plain, found = results(ran, "ddp-1-float64"), results(ran, name)
    assert len(found["losses"]) == NUM_STEPS
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-10)
    assert found["norms"] == pytest.approx(plain["norms"], rel=1e-10)
    weights = state(ran, name, "model")
    for parameter, tensor in state(ran, "ddp-1-float64", "model").items():
        assert tensor.dtype == torch.float64
        if not parameter.endswith(NO_GRADIENT):
            torch.testing.assert_close(weights[parameter], tensor, rtol=1e-8, atol=1e-10, msg=parameter)


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_slices_are_clipped_alike_on_any_number_of_workers(ran: Path, strategy: str, world_size: int) -> None:
    """Four slices: two workers have two each, three workers two, one and one."""
    plain, found = results(ran, "ddp-1-slices"), results(ran, f"{strategy}-{world_size}-slices")
    assert found["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert found["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    assert all(norm <= SLICES["max_grad_norm"] for norm in found["norms"])
    assert_same_states(ran, "ddp-1-slices", f"{strategy}-{world_size}-slices", weights=True)


def test_a_run_goes_on_with_another_engine_on_another_number_of_workers(ran: Path) -> None:
    chain = [
        loss for name in ("chain-ddp-2", "chain-zero3-3", "chain-zero1-1") for loss in results(ran, name)["losses"]
    ]
    assert chain == pytest.approx(results(ran, "ddp-1")["losses"], rel=1e-5)
    assert_same_states(ran, "ddp-1", "chain-zero1-1")


def test_the_same_engine_and_workers_twice_are_equal_to_the_bit_with_dropout(ran: Path) -> None:
    first, second = results(ran, "twice-a"), results(ran, "twice-b")
    assert first == second
    assert first["losses"] != results(ran, "zero3-2")["losses"][:6]
    assert_equal_states(ran, "twice-a", "twice-b")


@pytest.mark.parametrize("stage", STAGES)
def test_nan_on_one_worker_stops_all_before_anything_changes(ran: Path, stage: str) -> None:
    for rank in (0, 1):
        found = results(ran, f"{stage}-poisoned", rank)
        assert len(found["losses"]) == 2
        assert found["error"].startswith("the gradient of step 2 is not finite")
    assert_equal_states(ran, f"{stage}-poisoned-before", f"{stage}-poisoned")
    assert all(t.isfinite().all() for t in state(ran, f"{stage}-poisoned", "model").values())


def test_the_average_held_in_parts_equals_the_ordinary_one(ran: Path) -> None:
    parts, ordinary = state(ran, "zero3-warm", "ema"), state(ran, "zero3-warm", "ordinary")
    weights = state(ran, "zero3-warm", "model")
    assert parts.keys() == ordinary.keys()
    assert all(torch.equal(parts[name], ordinary[name]) for name in ordinary)
    assert not torch.equal(parts["conv_in.weight"], weights["conv_in.weight"])


def test_stage_3_leaves_large_weights_in_parts_and_the_others_whole(ran: Path) -> None:
    weights = state(ran, "ddp-1", "model").values()
    assert results(ran, "ddp-1")["num_elements_held"] == sum(w.numel() for w in weights)
    assert results(ran, "zero2-2")["num_elements_held"] == sum(w.numel() for w in weights)
    assert results(ran, "zero3-2")["num_elements_held"] == sum(w.numel() for w in weights if w.numel() <= 2000)


def test_stage_3_recomputes_activations(ran: Path) -> None:
    assert results(ran, "zero3-recomputed")["losses"] == pytest.approx(results(ran, "zero3-2")["losses"][:6], rel=1e-6)


def test_clipping_can_be_switched_off(ran: Path) -> None:
    plain, found = results(ran, "plain-unclipped"), results(ran, "zero3-unclipped")
    assert found["norms"] == pytest.approx(plain["norms"], rel=1e-4)
    assert found["norms"][0] > 1
    assert_same_states(ran, "plain-unclipped", "zero3-unclipped")


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(ran: Path) -> None:
    exact, rounded = results(ran, "zero3-2")["losses"][:6], results(ran, "zero3-bf16")["losses"]
    assert rounded == pytest.approx(results(ran, "plain-bf16")["losses"], rel=2e-3)
    assert rounded[0] != pytest.approx(exact[0], rel=1e-5)
    assert rounded == pytest.approx(exact, rel=2e-2)
    weights = state(ran, "zero3-bf16", "model").values()
    assert all(w.dtype == torch.float32 for w in weights)
    assert any(not torch.equal(w, w.bfloat16().float()) for w in weights)


def test_the_whole_trainer_resumes_a_run_of_another_engine(tmp_path: Path) -> None:
    data = digits(tmp_path / "data")
    unbroken = train_locally(tiny_config(data, tmp_path, "unbroken"))
    divided = {"num_workers": 2, "strategy": "zero3"}
    train_locally(tiny_config(data, tmp_path, "moved", train={"num_steps": 4}, workers=divided))
    moved = train_locally(tiny_config(data, tmp_path, "moved"))
    assert losses(moved.directory) == pytest.approx(losses(unbroken.directory), rel=1e-5)


def test_the_engine_is_hardware_and_no_part_of_what_a_run_is() -> None:
    plain = job_config("ddp")
    assert all(semantics(job_config(stage), "digest") == semantics(plain, "digest") for stage in STAGES)
