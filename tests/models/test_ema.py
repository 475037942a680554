"""Our moving average against torch-ema's own, by properties."""

import math

import pytest
import torch
import torch_ema
from hypothesis import given, settings
from hypothesis import strategies as st

from models.ema import ExponentialMovingAverage

DECAYS = st.one_of(st.floats(0.0, 1.0), st.just(0.9999))
SHAPES = st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4)


def _parameters(shapes, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {f"p{i}": torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for i, s in enumerate(shapes)}


def _train(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


@given(SHAPES, DECAYS, st.booleans(), st.integers(0, 12), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=100, deadline=None)
def test_averages_equal_those_of_torch_ema(shapes, decay, use_num_updates, num_updates, dtype):
    parameters = _parameters(shapes, 0, dtype)
    ours = ExponentialMovingAverage(parameters, decay, use_num_updates)
    theirs = torch_ema.ExponentialMovingAverage(parameters.values(), decay, use_num_updates)
    for k in range(num_updates):
        _train(parameters, k)
        ours.update()
        theirs.update()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(ours.shadow_params, theirs.shadow_params, rtol=tolerance, atol=tolerance)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert {name: state[name] for name in ("decay", "num_updates", "collected_params")} == {
        name: expected[name] for name in ("decay", "num_updates", "collected_params")
    }


@given(st.floats(0.0, 1.0), st.booleans(), st.integers(0, 40))
@settings(max_examples=50, deadline=None)
def test_initial_weight_share_is_what_remains_of_the_first_weights(decay, use_num_updates, num_updates):
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    ema = ExponentialMovingAverage([("p", parameter)], decay, use_num_updates)
    with torch.no_grad():
        parameter.zero_()
    for _ in range(num_updates):
        ema.update()
    assert ema.initial_weight_share == pytest.approx(ema.shadow_params[0].item(), abs=1e-12)


def test_the_share_passes_from_warm_up_to_constant():
    ema = ExponentialMovingAverage([("p", torch.nn.Parameter(torch.ones(1)))], 0.9, use_num_updates=True)
    ema.load_named_state(ema.named_state(), num_updates=100, decay=0.9)
    expected = math.prod(min(0.9, (1 + k) / (10 + k)) for k in range(1, 101))
    assert ema.initial_weight_share == pytest.approx(expected, rel=1e-12)


def test_the_paper_keeps_82_percent_of_the_initial_weights_after_2000_steps():
    parameter = torch.nn.Parameter(torch.ones(1))
    ema = ExponentialMovingAverage({"p": parameter})
    assert (ema.decay, ema.num_updates) == (0.9999, None)
    ema.load_named_state(ema.named_state(), num_updates=2000, decay=0.9999)
    assert ema.initial_weight_share == pytest.approx(0.8187, abs=1e-4)


@pytest.mark.parametrize("use_num_updates", [False, True])
def test_named_state_continues_the_average_and_its_share(use_num_updates):
    parameters = _parameters([(3, 2), (4,)], 0, torch.float32)
    ema = ExponentialMovingAverage(parameters, 0.99, use_num_updates)
    for k in range(5):
        _train(parameters, k)
        ema.update()
    saved = ema.named_state()
    resumed = ExponentialMovingAverage(_parameters([(3, 2), (4,)], 9, torch.float32), 0.99, use_num_updates)
    resumed.load_named_state(saved, ema.update_count, 0.99)
    _train(parameters, 5)
    ema.update()
    assert set(saved) == {"p0", "p1"}
    assert not torch.equal(saved["p0"], ema.named_state()["p0"])
    resumed.update(parameters.values())
    assert torch.equal(resumed.named_state()["p0"], ema.named_state()["p0"])
    assert resumed.initial_weight_share == ema.initial_weight_share < 1


def test_bfloat16_parameters_are_averaged_in_float32():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    ema = ExponentialMovingAverage({"p": parameter}, 0.9999)
    ema.shadow_params[0].fill_(1.0)
    ema.update()
    assert ema.named_state()["p"].item() == pytest.approx(0.9999, abs=1e-7)
    other = ExponentialMovingAverage({"p": parameter}, 0.9999)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.shadow_params[0], ema.shadow_params[0])
    assert other.initial_weight_share == ema.initial_weight_share


def test_another_decay_or_rule_is_refused_on_load():
    parameters = _parameters([(2,)], 0)
    saved = ExponentialMovingAverage(parameters, 0.99)
    ema = ExponentialMovingAverage(parameters, 0.999)
    with pytest.raises(ValueError, match=r"decay 0\.99, this run has 0\.999"):
        ema.load_named_state(saved.named_state(), 1, 0.99)
    with pytest.raises(ValueError, match=r"decay 0\.99"):
        ema.load_state_dict(saved.state_dict())
    with pytest.raises(ValueError, match="use_num_updates"):
        ema.load_state_dict(ExponentialMovingAverage(parameters, 0.999, use_num_updates=True).state_dict())
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        ExponentialMovingAverage(parameters, 1.5)


def test_state_of_another_model_is_refused_and_changes_nothing():
    ema = ExponentialMovingAverage(_parameters([(2,), (3,)], 0), 0.9)
    before = ema.named_state()
    with pytest.raises(ValueError, match="the first is p1"):
        ema.load_named_state({"p0": torch.zeros(2)}, 1, 0.9)
    with pytest.raises(ValueError, match="p1 has shape"):
        ema.load_named_state({"p0": torch.zeros(2), "p1": torch.zeros(4)}, 1, 0.9)
    assert all(torch.equal(before[name], value) for name, value in ema.named_state().items())


def test_a_torch_ema_state_loads_and_averages_are_swapped_in_and_out():
    parameters = _parameters([(2,)], 0)
    theirs = torch_ema.ExponentialMovingAverage(parameters.values(), 0.9, use_num_updates=False)
    _train(parameters, 1)
    theirs.update()
    ours = ExponentialMovingAverage(parameters, 0.9)
    ours.load_state_dict(theirs.state_dict())
    assert math.isnan(ours.initial_weight_share) or ours.update_count is not None
    raw = parameters["p0"].detach().clone()
    with ours.average_parameters():
        assert torch.equal(parameters["p0"], theirs.shadow_params[0])
    assert torch.equal(parameters["p0"], raw)
    assert ours.state_dict()["collected_params"] is None


@pytest.mark.parametrize("decay", [math.nan, -0.1, 1.1, "0.9", True])
def test_a_decay_that_is_not_a_share_is_refused(decay):
    with pytest.raises(ValueError, match=r"EMA decay is .*\[0, 1\]; the paper uses 0.9999"):
        ExponentialMovingAverage({"a": torch.zeros(1)}, decay)


def test_a_refused_state_leaves_the_averages_as_they_were():
    ema = ExponentialMovingAverage({"a": torch.ones(2), "b": torch.ones(1)})
    state = ema.state_dict()
    for shadows in ([], [torch.zeros(2)], [torch.zeros(1), torch.zeros(2)]):
        with pytest.raises(ValueError, match="does not fit this model"):
            ema.load_state_dict({**state, "shadow_params": shadows})
    for num_updates in (-1, 1.5, True):
        with pytest.raises(ValueError, match="num_updates is"):
            ema.load_named_state({"a": torch.zeros(2), "b": torch.zeros(1)}, num_updates, 0.9999)
    assert [shadow.tolist() for shadow in ema.shadow_params] == [[1.0, 1.0], [1.0]]
