"""Kernel distance, Inception Score, precision and recall, and bootstrap intervals, against independent references."""

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from eval.metrics.intervals import frechet_interval, frechet_resampler, inception_score_interval, mean_interval
from eval.metrics.scores import coverage, inception_score, kernel_distance
from eval.metrics.statistics import FeatureStatistics, statistics_distance


def precision_recall(reference, sampled):
    return tuple(float(covered.mean()) for covered in coverage(reference, sampled))


def normal(num_images, dimension, seed, offset=0.0):
    return np.random.default_rng(seed).normal(size=(num_images, dimension)) + offset


@pytest.mark.parametrize(("num_reference", "num_sampled"), [(300, 120), (90, 400)])
def test_kernel_distance_equals_clean_fid_on_the_same_subsets(num_reference, num_sampled):
    from cleanfid.fid import kernel_distance as clean_fid_distance

    reference, sampled = normal(num_reference, 16, 0), normal(num_sampled, 16, 1, 0.5)
    np.random.seed(7)
    theirs = clean_fid_distance(reference, sampled, num_subsets=10, max_subset_size=50)
    ours, _, _ = kernel_distance(reference, sampled, seed=7, num_subsets=10, max_subset_size=50)
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_kernel_distance_is_near_zero_for_one_distribution_and_seeded():
    reference, sampled = normal(500, 8, 0), normal(500, 8, 1)
    near, spread, _ = kernel_distance(reference, sampled, max_subset_size=200)
    far, _, _ = kernel_distance(reference, sampled + 1, max_subset_size=200)
    assert abs(near) < 3 * spread
    assert far > 50 * abs(near)
    assert kernel_distance(reference, sampled, seed=3) == kernel_distance(reference, sampled, seed=3)


def test_inception_score_of_sure_and_varied_predictions_is_the_number_of_classes():
    probabilities = np.eye(5)[np.arange(100) % 5]
    assert inception_score(probabilities, num_splits=4) == pytest.approx((5.0, 0.0))
    assert inception_score(np.full((100, 5), 0.2)) == pytest.approx((1.0, 0.0))


def test_inception_score_follows_its_definition():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(6), size=40)
    marginal = probabilities.mean(0)
    expected = np.exp((probabilities * np.log(probabilities / marginal)).sum(1).mean())
    assert inception_score(probabilities, num_splits=1)[0] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="10 splits"):
        inception_score(probabilities[:5])


@pytest.mark.parametrize("num_images", [57, 512, 1000])
def test_inception_score_splits_images_as_the_published_code_does(num_images):
    probabilities = np.random.default_rng(0).dirichlet(np.full(20, 0.3), num_images)
    scores = []
    for split in range(10):
        part = probabilities[split * num_images // 10 : (split + 1) * num_images // 10]
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()))
    assert inception_score(probabilities) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_precision_and_recall_follow_their_definition():
    reference, sampled = normal(120, 4, 0), normal(80, 4, 1, 0.8)

    def covered(points, centres):
        radii = np.sort(pairwise_distances(centres), axis=1)[:, 3]
        return (pairwise_distances(points, centres) <= radii).any(1).mean()

    expected = covered(sampled, reference), covered(reference, sampled)
    assert precision_recall(reference, sampled) == pytest.approx(expected)


def test_a_collapsed_sampler_is_precise_but_recalls_little():
    reference = normal(400, 4, 0)
    precision, recall = precision_recall(reference, reference[0] + normal(50, 4, 1) * 1e-3)
    assert precision == 1.0
    assert recall < 0.05


@pytest.mark.parametrize("num_images", [30, 300])
def test_the_resampler_at_even_counts_is_the_distance(num_images):
    """Both ways of taking the eigenvalues: fewer images than directions, and more."""
    sampled, reference = normal(num_images, 40, 0), FeatureStatistics.of(normal(500, 40, 1, 0.1))
    expected = statistics_distance(FeatureStatistics.of(sampled), reference)
    assert frechet_resampler(sampled, reference)(np.ones(num_images)) == pytest.approx(expected, rel=1e-9)


def test_the_resampler_at_uneven_counts_is_the_distance_of_the_repeated_images():
    sampled, reference = normal(60, 10, 0), FeatureStatistics.of(normal(200, 10, 1))
    counts = np.random.default_rng(2).multinomial(60, np.full(60, 1 / 60)).astype(float)
    repeated = FeatureStatistics.of(np.repeat(sampled, counts.astype(int), axis=0))
    expected = statistics_distance(repeated, reference)
    assert frechet_resampler(sampled, reference)(counts) == pytest.approx(expected, rel=1e-9)


def test_the_interval_covers_what_redrawing_the_samples_gives():
    """Distances of 300 fresh draws: 95 % of intervals, give or take their number, hold the mean of them all."""
    reference = FeatureStatistics.of(normal(2000, 6, 0))
    draws = [normal(200, 6, seed, 0.3) for seed in range(1, 301)]
    distances = [statistics_distance(FeatureStatistics.of(draw), reference) for draw in draws]
    expected = np.mean(distances)
    intervals = [frechet_interval(d, reference, v, 40, 0) for d, v in zip(draws[:100], distances, strict=False)]
    share = np.mean([found["low"] <= expected <= found["high"] for found in intervals])
    assert 0.87 <= share <= 1.0
    assert np.mean([found["standard_error"] for found in intervals]) == pytest.approx(np.std(distances), rel=0.25)


def test_the_interval_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=400)
    found = mean_interval(values, values.mean(), 400, 0)
    assert found["standard_error"] == pytest.approx(values.std() / 20, rel=0.15)
    assert mean_interval(values, values.mean(), 0, 0) is None


@pytest.mark.parametrize(("num_images", "subset_size"), [(100, 100), (400, 100)])
def test_the_error_of_a_kernel_distance_is_its_spread_when_samples_are_redrawn(num_images, subset_size):
    reference = normal(1000, 6, 0)
    draws = [normal(num_images, 6, seed, 0.3) for seed in range(1, 81)]
    found = [kernel_distance(reference, draw, num_subsets=20, max_subset_size=subset_size) for draw in draws]
    values, spreads, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.3)
    assert num_images == subset_size or np.mean(spreads) > 1.5 * values.std()  # the deviation over subsets is not


def test_the_interval_of_an_inception_score_is_its_spread_when_samples_are_redrawn():
    random = np.random.default_rng(0)
    draws = [random.dirichlet(np.full(10, 0.3), 400) for _ in range(80)]
    scores = [inception_score(draw)[0] for draw in draws]
    intervals = [inception_score_interval(d, v, 40, 0) for d, v in zip(draws[:20], scores, strict=False)]
    assert np.mean([found["standard_error"] for found in intervals]) == pytest.approx(np.std(scores), rel=0.3)
