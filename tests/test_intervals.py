"""Intervals keep their word: simulated coverage of the nominal 95% lies between 93 and 97.5%."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from robgrad import faithfulness, intervals

TIMES = 2000


def covers(truth, low, high) -> float:
    return np.mean((np.asarray(low) <= truth) & (truth <= np.asarray(high)))


@pytest.mark.parametrize("count", [3, 5, 10, 100])
def test_means(count):
    draws = np.random.default_rng(count).normal(2.0, 3.0, (count, 20 * TIMES))
    assert 0.94 < covers(2.0, *intervals.of_mean(draws)) < 0.96


def test_a_percentile_bootstrap_of_three_values_would_not_do():
    """Why `of_mean` is not one: this is what the rule was before."""
    generator = np.random.default_rng(0)
    bounds = [intervals.of_many(generator.normal(size=3), intervals.mean, 200) for _ in range(400)]
    assert covers(0.0, *np.transpose(bounds)) < 0.85


@pytest.mark.parametrize("count", [60, 360])
def test_medians(count):
    generator = np.random.default_rng(count)
    bounds = [intervals.of_many(generator.gamma(3.0, size=count), intervals.median, 300) for _ in range(800)]
    assert 0.93 < covers(stats.gamma(3.0).median(), *np.transpose(bounds)) < 0.975


def test_medians_of_paired_differences_are_cautious():
    generator, bounds = np.random.default_rng(0), []

    def step(values):
        return np.subtract(*np.moveaxis(np.median(values, axis=0), -1, 0))

    for _ in range(300):
        common = generator.gamma(3.0, size=100)
        values = np.stack([common + 0.5, common], axis=1) + generator.normal(0, 0.3, (100, 2))
        bounds.append(intervals.of_many(values, step, 200))
    assert covers(0.5, *np.transpose(bounds)) > 0.95


@pytest.mark.parametrize("count", [6, 20])
@pytest.mark.parametrize("rank", [False, True])
@pytest.mark.parametrize("truth", [0.0, 0.6, 0.9])
def test_correlations(count, rank, truth):
    generator = np.random.default_rng(count)
    x, noise = generator.normal(size=(2, TIMES, count))
    y = truth * x + math.sqrt(1 - truth**2) * noise
    if rank:
        x, y = stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)
        # Spearman's correlation of a bivariate normal.
        truth = 6 / math.pi * math.asin(truth / 2)
    values = [np.corrcoef(*pair)[0, 1] for pair in zip(x, y, strict=True)]
    bounds = [intervals.of_correlation(value, count, rank) for value in values]
    # Ranks of six pairs come in steps, so that no interval of theirs covers just so often.
    assert 0.93 < covers(truth, *np.transpose(bounds)) < (0.985 if rank and count == 6 else 0.975)


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_correlations_whose_seeds_have_slopes_of_their_own(slope):
    """Twenty-one networks of three seeds: a seed's luck moves all networks of it, though nothing rises on average."""
    generator = np.random.default_rng(0)
    x, bounds, alone = np.linspace(-1, 1, 21), [], []
    for _ in range(TIMES):
        y = slope * generator.normal(size=(3, 1)) * x + generator.normal(size=(3, 21))
        by_seed = [stats.spearmanr(x, one).statistic for one in y]
        alike = intervals.likeness(np.broadcast_to(x, y.shape), y, rank=True)
        bounds.append(intervals.of_correlations(by_seed, 21, True, alike)[1:3])
        alone.append(intervals.of_correlation(stats.spearmanr(x, y.mean(0)).statistic, 21, rank=True))
    assert covers(0.0, *np.transpose(bounds)) > 0.93
    # Without the seeds it would not be told.
    assert slope < 1 or covers(0.0, *np.transpose(alone)) < 0.9


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_seeds_and_a_sample_that_they_share(seeds, share):
    """Whatever part of the variance is the seeds'."""
    generator = np.random.default_rng(seeds)
    times = 10 * TIMES
    of_seeds = generator.normal(0, math.sqrt(share * seeds), (seeds, times))
    estimates = of_seeds + generator.normal(0, math.sqrt(1 - share), times)
    assert 0.935 < covers(0.0, *intervals.of_seeds(estimates, 1 - share)) < 0.975


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("noise", [0.02, 0.3])
def test_roar_scores(seeds, noise):
    """Networks whose accuracy varies by seed, little or much against the test images', on images easy and hard."""
    generator = np.random.default_rng(seeds)
    percentiles, images, bounds = (30.0, 70.0), 150, []
    for _ in range(TIMES):
        ease = generator.normal(0, 1, images)

        def hits(level, ease=ease):
            skill = level + noise * generator.normal(size=(2, seeds, 1))
            return generator.uniform(size=(2, seeds, images)) < 1 / (1 + np.exp(-(ease + skill)))

        curve = faithfulness.curve("roar", percentiles, hits(0.0), hits(0.5))
        bounds.append((curve.low, curve.high))
    many = np.random.default_rng(0).normal(size=(200_000, 2)) @ np.array([1.0, noise])
    accuracy = lambda level: np.mean(1 / (1 + np.exp(-(many + level))))  # noqa: E731
    gap = accuracy(0.5) - accuracy(0.0)
    # The trapezoid through 0 at both ends.
    truth = gap * (0.15 + 0.4 + 0.15)
    assert 0.93 < covers(truth, *np.transpose(bounds)) < 0.975


def test_nothing_is_said_of_one():
    assert all(map(math.isnan, intervals.of_mean(np.ones(1))))
    assert all(map(math.isnan, intervals.of_seeds(np.ones(1))))
    assert all(map(math.isnan, intervals.of_correlation(0.5, 3, rank=True)))
    assert all(map(math.isnan, intervals.of_many(np.ones(1), intervals.mean)))


def test_a_statistic_of_everything_is_refused():
    """`numpy.mean` without an axis would mix the samples."""
    with pytest.raises(ValueError, match="expected a statistic over the first axis"):
        intervals.of_many(np.arange(40.0), np.mean)


def test_seeds_and_rows_agree_with_their_parts():
    """One seed is a bootstrap of rows; rows without spread leave the t interval of the seeds."""
    values = np.random.default_rng(0).normal(size=(1, 80))
    assert intervals.of_seeds_and_rows(values, intervals.mean)[1:] == intervals.of_many(values[0], intervals.mean)
    constant = np.repeat([[1.0], [2.0], [4.0]], 50, axis=1)
    found = intervals.of_seeds_and_rows(constant, intervals.mean)
    np.testing.assert_allclose(found[1:], intervals.of_mean(np.array([1.0, 2.0, 4.0])))
    assert found[0] == pytest.approx(7 / 3)


@pytest.mark.parametrize("shape", [(7,), (8,), (8, 3), (1, 2)])
def test_mean_and_median_are_numpys_of_what_is_not_nan(shape):
    generator = np.random.default_rng(0)
    for share in (0.0, 0.4, 1.0):
        values = np.where(generator.random(shape) < share, np.nan, generator.normal(size=shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            mean, median = np.nanmean(values, axis=0), np.nanmedian(values, axis=0)
        np.testing.assert_allclose(intervals.mean(values), mean, rtol=1e-14)
        np.testing.assert_array_equal(intervals.median(values), median)
