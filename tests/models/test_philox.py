"""Philox against the published known-answer vectors, and the numbers drawn from it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models import philox

KNOWN_ANSWERS = [  # Random123's kat_vectors for philox4x32 with 10 rounds
    ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF,) * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
INDICES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    words = philox.philox_4x32([torch.tensor([word] * 3) for word in counter], key)
    assert [word.tolist() for word in words] == [[word] * 3 for word in expected]


def _slow_philox(counter, key):
    """The cipher in Python's unbounded integers, as the paper states it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@given(st.integers(-(2**70), 2**70), st.text(max_size=5), INDICES, st.integers(0, 2**32 - 1), st.integers(1, 11))
@settings(max_examples=50, deadline=None)
def test_bits_are_the_cipher_of_block_draw_and_index(seed, stream, index, draw, num):
    bits = philox.uniform_bits(seed, stream, torch.tensor(index), draw, num)
    key = philox.stream_key(seed, stream)
    for row, i in zip(bits.tolist(), index, strict=True):
        blocks = [_slow_philox((block, draw, i % 2**32, i >> 32), key) for block in range(3)]
        assert row == [word for block in blocks for word in block][:num]


def test_a_chunk_border_does_not_show(monkeypatch):
    index = torch.arange(7)
    whole = philox.uniform_bits(1, "s", index, 3, 50)
    monkeypatch.setattr(philox, "_CHUNK", 11)
    assert torch.equal(philox.uniform_bits(1, "s", index, 3, 50), whole)


@given(INDICES, st.integers(0, 4), st.sampled_from([(3,), (2, 5), (3, 4, 4)]))
@settings(max_examples=30, deadline=None)
def test_a_row_does_not_depend_on_the_batch_it_is_in(index, row, shape):
    row %= len(index)
    batch = torch.tensor(index)
    for draw in (philox.normal, philox.uniform):
        assert torch.equal(draw(5, "x", batch, shape, draw=9)[row], draw(5, "x", batch[row : row + 1], shape, 9)[0])
    alone = philox.randint(5, "x", batch[row : row + 1], 1000)
    assert torch.equal(philox.randint(5, "x", batch, 1000)[row], alone[0])


def test_seed_stream_index_and_draw_each_give_other_numbers():
    index = torch.tensor([4])
    rows = [
        philox.uniform_bits(*args, 8).tolist()
        for args in [
            (0, "a", index, 0),
            (1, "a", index, 0),
            (0, "b", index, 0),
            (0, "a", index + 1, 0),
            (0, "a", index, 1),
        ]
    ]
    assert len({str(row) for row in rows}) == 5


def test_normals_are_normal_and_independent_across_rows_and_draws():
    x = philox.normal(0, "noise", torch.arange(200), (1000,), dtype=torch.float64).numpy()
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    assert abs(x.mean()) < 5 / np.sqrt(x.size)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / x.size)
    other = philox.normal(0, "noise", torch.arange(200), (1000,), draw=1, dtype=torch.float64).numpy()
    for a, b in [(x[:-1], x[1:]), (x[:, :-1], x[:, 1:]), (x[:, ::2], x[:, 1::2]), (x, other)]:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_float32_normals_are_the_float64_ones_rounded():
    index = torch.arange(50)
    wide = philox.normal(3, "n", index, (33,), dtype=torch.float64)
    assert torch.equal(philox.normal(3, "n", index, (33,)), wide.float())


def test_uniforms_lie_in_the_half_open_interval_and_are_uniform():
    for dtype in (torch.float32, torch.float64):
        x = philox.uniform(0, "u", torch.arange(100), (1000,), dtype=dtype)
        assert x.dtype == dtype
        assert x.min() >= 0
        assert x.max() < 1
        assert stats.kstest(x.double().numpy().ravel(), "uniform").pvalue > 1e-3


def test_randint_reaches_every_value_equally():
    values = philox.randint(0, "t", torch.arange(100_000), 10).numpy()
    assert stats.chisquare(np.bincount(values, minlength=10)).pvalue > 1e-3
    large = philox.randint(0, "t", torch.arange(1000), 2**62)
    assert large.min() >= 0
    assert large.max() > 2**61


@pytest.mark.parametrize(
    "call",
    [
        lambda: philox.uniform_bits(0, "s", torch.zeros(2, 2, dtype=torch.int64), 0, 1),
        lambda: philox.uniform_bits(0, "s", torch.zeros(2), 0, 1),
        lambda: philox.uniform_bits(0, "s", torch.zeros(2, dtype=torch.int64), -1, 1),
        lambda: philox.uniform(0, "s", torch.zeros(2, dtype=torch.int64), (1,), dtype=torch.bfloat16),
        lambda: philox.randint(0, "s", torch.zeros(2, dtype=torch.int64), 0),
    ],
)
def test_wrong_arguments_are_refused(call):
    with pytest.raises(ValueError, match="must"):
        call()


@pytest.mark.gpu
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_a_gpu_gives_the_published_known_answers(counter, key, expected):
    words = philox.philox_4x32([torch.tensor([word] * 3, device="cuda") for word in counter], key)
    assert [word.tolist() for word in words] == [[word] * 3 for word in expected]


@pytest.mark.gpu
def test_bits_are_the_same_on_a_gpu_and_normals_in_float32():
    index = torch.cat([torch.arange(64), torch.tensor([2**32 - 1, 2**32, 2**40 + 5, 2**63 - 1])])
    for draw in (7, 2**32 - 1):
        on_gpu = philox.uniform_bits(1, "s", index.cuda(), draw, 1001)
        assert torch.equal(on_gpu.cpu(), philox.uniform_bits(1, "s", index, draw, 1001))
    on_gpu, on_cpu = philox.normal(1, "s", index.cuda(), (1001,)).cpu(), philox.normal(1, "s", index, (1001,))
    torch.testing.assert_close(on_gpu, on_cpu, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("word", [0, 2**32 - 1])
def test_extreme_words_give_finite_normals(monkeypatch, word):
    monkeypatch.setattr(philox, "uniform_bits", lambda seed, stream, index, draw, num: torch.full((1, num), word))
    x = philox.normal(0, "s", torch.tensor([0]), (4,), dtype=torch.float64)
    assert torch.isfinite(x).all()
    assert x.abs().max() < 6.77


def test_what_is_not_whole_is_refused():
    index = torch.arange(2)
    with pytest.raises(TypeError, match="float"):
        philox.normal(1.5, "a", index, (1,))
    with pytest.raises(ValueError, match=r"high is 10.0: it must be a whole number"):
        philox.randint(0, "a", index, 10.0)
    with pytest.raises(ValueError, match=r"dtype is torch.int64"):
        philox.normal(0, "a", index, (1,), dtype=torch.int64)
