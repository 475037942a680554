"""Streaming statistics and the Fréchet distance against numpy, scipy, clean-fid and closed forms."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.statistics import FeatureStatistics, covariance_factor, frechet_distance, statistics_distance


def features(num_images, dimension, seed, offset=0.0, scale=1.0):
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(dimension, dimension)) * np.exp(-np.arange(dimension) / (dimension / 4))
    return random.normal(size=(num_images, dimension)) @ mixing.T * scale + offset


def scipy_distance(one, other):
    """The textbook formula, with scipy's general matrix square root."""
    covariances = [np.cov(side, rowvar=False) for side in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    difference = one.mean(0) - other.mean(0)
    return difference @ difference + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root).real


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 200), max_size=8),
    offset=st.sampled_from([0.0, 1.0, 1e5]),
    seed=st.integers(0, 1000),
)
def test_merging_over_any_split_gives_the_statistics_of_the_whole(cuts, offset, seed):
    rows = features(200, 6, seed, offset)
    borders = [0, *sorted(cuts), 200]
    merged = FeatureStatistics.empty(6)
    for start, stop in itertools.pairwise(borders):
        if stop > start:
            merged = merged.merge(FeatureStatistics.of(rows[start:stop]))
    assert merged.count == 200
    np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-10, atol=1e-10)
    # A million times the spread as offset: raw sums of outer products would keep no digit here.
    covariance = np.cov(rows - offset, rowvar=False)
    np.testing.assert_allclose(merged.covariance, covariance, rtol=1e-10, atol=1e-10 * max(1.0, offset * 1e-5))


def test_updating_in_place_equals_merging():
    rows = features(90, 5, 1)
    updated, merged = FeatureStatistics.empty(5), FeatureStatistics.empty(5)
    for start in range(0, 90, 20):
        updated.update(rows[start : start + 20])
        merged = merged.merge(FeatureStatistics.of(rows[start : start + 20]))
    assert updated.count == merged.count == 90
    assert np.array_equal(updated.mean, merged.mean)
    assert np.array_equal(updated.scatter, merged.scatter)


def test_merge_changes_neither_side():
    one, other = FeatureStatistics.of(features(20, 4, 0)), FeatureStatistics.of(features(30, 4, 1))
    before = one.scatter.copy(), other.scatter.copy()
    one.merge(other)
    assert np.array_equal(one.scatter, before[0])
    assert np.array_equal(other.scatter, before[1])


@pytest.mark.parametrize("num_images", [500, 60])
def test_the_distance_equals_scipy_and_clean_fid(num_images):
    from cleanfid.fid import frechet_distance as clean_fid_distance

    one, other = features(num_images, 40, 0), features(700, 40, 1, offset=0.3, scale=1.2)
    sides = FeatureStatistics.of(one), FeatureStatistics.of(other)
    ours = statistics_distance(*sides)
    assert ours == pytest.approx(scipy_distance(one, other), rel=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = clean_fid_distance(sides[0].mean, sides[0].covariance, sides[1].mean, sides[1].covariance)
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(("smallest", "tolerance"), [(1.0, 1e-12), (0.0, 1e-7)])
def test_commuting_gaussians_have_the_closed_form(smallest, tolerance):
    """A direction without variance costs the square root of the rounding error, no more."""
    variances_1, variances_2 = np.array([4.0, 9.0, 0.25]), np.array([1.0, 16.0, smallest])
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    covariances = [rotation @ np.diag(v) @ rotation.T for v in (variances_1, variances_2)]
    mean_1, mean_2 = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 5.0])
    expected = 5.0 + ((np.sqrt(variances_1) - np.sqrt(variances_2)) ** 2).sum()
    assert frechet_distance(mean_1, covariances[0], mean_2, covariances[1]) == pytest.approx(expected, rel=tolerance)


def test_sampled_gaussians_approach_the_closed_form():
    random = np.random.default_rng(0)
    one, other = random.normal(size=(200_000, 8)), 2 * random.normal(size=(200_000, 8)) + 0.5
    distance = statistics_distance(FeatureStatistics.of(one), FeatureStatistics.of(other))
    assert distance == pytest.approx(8 * (0.25 + 1.0), rel=0.01)


def test_fewer_images_than_features_is_exact_and_symmetric():
    """A rank-deficient covariance: the distance through the 20-dimensional span, by a Gram matrix, is the reference."""
    few, many = features(20, 100, 0), features(500, 100, 1)
    sides = FeatureStatistics.of(few), FeatureStatistics.of(many)
    centred = (few - few.mean(0)) / np.sqrt(19)
    gram = centred @ sides[1].covariance @ centred.T
    root_trace = np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum()
    difference = few.mean(0) - many.mean(0)
    expected = difference @ difference + (centred**2).sum() + np.trace(sides[1].covariance) - 2 * root_trace
    assert statistics_distance(*sides) == pytest.approx(expected, rel=1e-8)
    assert statistics_distance(*sides) == pytest.approx(statistics_distance(*sides[::-1]), rel=1e-12)


@pytest.mark.parametrize("num_images", [2, 30, 300])
def test_the_distance_to_itself_is_zero_up_to_rounding(num_images):
    statistics = FeatureStatistics.of(features(num_images, 50, 2))
    assert 0 <= statistics_distance(statistics, statistics) <= 1e-6 * np.trace(statistics.covariance)


def test_a_constant_feature_among_many_is_no_matter():
    """As in Inception, where some features hardly ever fire: the covariance is singular though images are many."""
    one, other = features(500, 20, 5), features(500, 20, 6, offset=0.2)
    expected = scipy_distance(one, other)
    padded = [np.concatenate([side, np.zeros((500, 3))], axis=1) for side in (one, other)]
    distance = statistics_distance(*(FeatureStatistics.of(side) for side in padded))
    assert distance == pytest.approx(expected, rel=1e-9)


def test_constant_features_give_the_distance_of_the_means():
    one = FeatureStatistics.of(np.ones((10, 3)))
    other = FeatureStatistics.of(np.ones((10, 3)) * [1, 1, 3])
    assert statistics_distance(one, other) == pytest.approx(4.0, abs=1e-12)


@pytest.mark.parametrize(("num_images", "rank"), [(10, 9), (31, 30), (500, 30)])
def test_a_factor_times_itself_is_the_covariance(num_images, rank):
    covariance = FeatureStatistics.of(features(num_images, 30, 4)).covariance
    factor = covariance_factor(covariance)
    assert factor.shape == (30, rank)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-10 * np.trace(covariance))


def test_broken_features_are_refused_not_scored():
    rows = features(10, 3, 0)
    rows[4, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        FeatureStatistics.of(rows)
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.array([np.inf]), np.eye(1), np.zeros(1), np.eye(1))


def test_stored_statistics_come_back_and_a_damaged_file_is_named(tmp_path):
    statistics = FeatureStatistics.of(features(40, 7, 0))
    path = tmp_path / "statistics.npz"
    statistics.save(path)
    loaded = FeatureStatistics.load(path)
    assert loaded.count == 40
    assert np.array_equal(loaded.mean, statistics.mean)
    np.testing.assert_allclose(loaded.covariance, statistics.covariance, rtol=1e-15)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"statistics\.npz"):
        FeatureStatistics.load(path)
