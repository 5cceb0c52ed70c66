"""95% confidence intervals that keep their word for few values: means, any statistic of many, seeds, correlations.

Bounds are pairs `(low, high)` of the statistic's shape, NaN where there are too few values to say. The suite
simulates how often they cover the truth.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special, stats

Bounds = tuple[Any, Any]
# Numbers of bootstrap samples in memory at a time, few enough to stay in a processor's caches.
_AT_ONCE = 250_000


def of_mean(values: np.ndarray) -> Bounds:
    """Student's t interval of the mean over the first axis; exact for normal values, from two on.

    For few values the percentile bootstrap is no substitute: of 3 values it covers the mean in 74 of 100 cases.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        nothing = np.full(values.shape[1:], math.nan)
        return nothing, nothing
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(0, ddof=1) / math.sqrt(len(values))
    return values.mean(0) - half, values.mean(0) + half


def of_share(hits: np.ndarray) -> tuple[float, float, float]:
    """The share of hits `[seeds, rows]` (bool) and its interval: none of 100 hits is not surely none of all.

    Wilson's (1927) of the rows for one seed. For more `of_seeds_and_rows`, cut to [0, 1], and never narrower than
    Wilson's of as many rows as all seeds have between them that are independent: n S / (1 + (S - 1) r), r the
    correlation of two seeds' hits on a row, in 0..1.

    Raises:
      ValueError: if hits are not `[seeds, rows]` of at least one row, 0 and 1 or truth values.
    """
    hits = np.asarray(hits, float)
    if hits.ndim != 2 or not hits.size or not np.isin(hits, (0.0, 1.0)).all():
        raise ValueError(f"expected hits [seeds, rows] of 0 and 1, got shape {list(hits.shape)} or other values")
    (seeds, rows), value = hits.shape, float(hits.mean())
    spread = value * (1 - value)
    together = np.cov(hits, bias=True).sum() / seeds**2 if seeds > 1 and rows > 1 else spread
    alike = float(np.clip((together / spread * seeds - 1) / max(seeds - 1, 1), 0, 1)) if spread > 0 else 1.0
    low, high = wilson(value, rows * seeds / (1 + (seeds - 1) * alike))
    if seeds > 1 and spread > 0:
        _, less, more = of_seeds_and_rows(hits, mean)
        low, high = min(low, float(less)), max(high, float(more))
    return value, max(low, 0.0), min(high, 1.0)


def wilson(share: float, count: float) -> Bounds:
    """Wilson's interval (1927) of a share of so many independent trials, which need not be a whole number.

    Raises:
      ValueError: if the share is not in [0, 1], or the count not above 0.
    """
    if not (0 <= share <= 1 and 0 < count < math.inf):
        raise ValueError(f"expected a share in [0, 1] of trials above 0, got {share} of {count}")
    z = stats.norm.ppf(0.975)
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return (centre - half if share > 0 else 0.0), (centre + half if share < 1 else 1.0)


def draws(values: np.ndarray, statistic: Callable[[np.ndarray], Any], resamples: int = 1000) -> np.ndarray:
    """The statistic of bootstrap samples of the rows of `values` (Efron, 1979), `[resamples, ...]`; always the same.

    Rows are independent, for instance what several networks do to one image, so that differences of networks are
    paired.

    Args:
      values: `[rows, ...]`.
      statistic: of `[rows, samples, ...]`, over the first axis: samples come many at a time, in the second.
      resamples: how many.

    Raises:
      ValueError: if the statistic does not give one value, or array, for each sample; if there are no rows or samples.
    """
    values = np.asarray(values)
    if values.ndim < 1 or not len(values) or resamples < 1:
        raise ValueError(f"expected rows and resamples, one or more, got shape {list(values.shape)} and {resamples}")
    generator, rows = np.random.default_rng(0), len(values)
    at_once = max(1, _AT_ONCE // max(values.size, 1))
    found = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(0, rows, (min(at_once, resamples - start), rows))
        found.append(np.asarray(statistic(values[drawn.T])))
        if found[-1].shape[:1] != drawn.shape[:1]:
            gave = list(found[-1].shape)
            raise ValueError(f"expected a statistic over the first axis, [{len(drawn)}, ...] of these, got {gave}")
    return np.concatenate(found)


def mean(values: np.ndarray) -> Any:
    """The mean over the first axis of what is not NaN, as `numpy.nanmean` and quicker; NaN, and no warning, of none."""
    missing = np.isnan(values)
    count = np.asarray(len(values) - missing.sum(0), float)
    return np.divide(np.where(missing, 0.0, values).sum(0), count, out=np.full(count.shape, math.nan), where=count > 0)


def median(values: np.ndarray) -> Any:
    """The median over the first axis of what is not NaN, as `numpy.nanmedian` and quicker; NaN, no warning, of none."""
    if not len(values):
        return mean(np.asarray(values, float))
    ordered = np.sort(values, axis=0)  # NaN last.
    count = np.asarray(np.count_nonzero(~np.isnan(ordered), axis=0))
    lower, upper = (
        np.take_along_axis(ordered, place[None], 0)[0] for place in (np.maximum(count - 1, 0) // 2, count // 2)
    )
    return (lower + upper) / 2


def of_many(values: np.ndarray, statistic: Callable[[np.ndarray], Any], resamples: int = 1000) -> Bounds:
    """The percentile bootstrap interval of a statistic of the rows of `values`; for some thirty rows or more.

    The statistic is as in `draws`: over the first axis, whatever axes follow.
    Of medians' differences in pairs it is cautious: it covers 98 to 99%.
    """
    values = np.asarray(values)
    if len(values) < 2:
        return math.nan, math.nan
    low, high = np.percentile(draws(values, statistic, resamples), [2.5, 97.5], axis=0)
    return low, high


def of_seeds(estimates: np.ndarray, shared: Any = 0.0, least: Any = 0.0) -> Bounds:
    """Interval of the mean of a few seeds' estimates, all of the same sample, part of whose error they share.

    Args:
      estimates: `[seeds, ...]`, what each seed gives.
      shared: variance that the sample, for instance the images drawn, brings to all seeds alike: the covariance of
        two seeds' estimates over samples. What it brings to each seed by itself shows between them.
      least: variance of the mean that the sample alone brings where it brings nothing to all seeds alike: few seeds'
        estimates may be equal by chance, and then say nothing of it.

    With s^2 the variance of the mean over seeds, v the shared one, and p = s^2 / (s^2 + v) the seeds' share, the half
    width is the root of (s^2 + v) (t^2 p^1.5 + z^2 (1 - p^1.5)), t and z the 97.5% points of Student's t for the
    seeds and of the normal. At p = 1 it is the t interval, at p = 0 the normal one. The power 1.5 stands between the
    sum of both half widths in quadrature, 1 (Graybill and Wang, 1980), which covers up to 98.7% for two seeds, and
    Satterthwaite's (1946) approximation, which covers down to 87%; with it coverage is 94 to 97.5% for two seeds or
    more, whatever the share. NaN for one seed.
    """
    estimates = np.asarray(estimates, float)
    if len(estimates) < 2:
        nothing = np.full(estimates.shape[1:], math.nan)
        return nothing, nothing
    total = np.maximum(estimates.var(0, ddof=1) / len(estimates) + shared, least)
    half = np.sqrt(total) * reach(0.025, len(estimates) - 1, share_of_seeds(estimates, shared, least))
    return estimates.mean(0) - half, estimates.mean(0) + half


def share_of_seeds(estimates: np.ndarray, shared: Any = 0.0, least: Any = 0.0) -> Any:
    """The seeds' share p of the variance of the mean of `[seeds, ...]`, see `of_seeds`; 1 for one seed."""
    if len(estimates) < 2:
        return np.ones(np.shape(estimates)[1:])
    by_seed = np.asarray(estimates, float).var(0, ddof=1) / len(estimates)
    total = np.maximum(by_seed + shared, least)
    return np.divide(by_seed, total, out=np.zeros_like(total), where=total > 0)


def reach(chance: Any, degrees: float, share: Any = 1.0) -> Any:
    """How many standard errors an interval reaches that misses with this chance on one side.

    The root of t^2 p^1.5 + z^2 (1 - p^1.5), see `of_seeds`: Student's t at p = 1, the normal's at p = 0.
    """
    weight = np.asarray(share, float) ** 1.5
    return np.sqrt(special.stdtrit(degrees, chance) ** 2 * weight + special.ndtri(chance) ** 2 * (1 - weight))


def shared_variance(by_seed: np.ndarray) -> Any:
    """The mean covariance of two seeds, from draws of each seed's estimate `[draws, seeds, ...]`; never negative."""
    count = by_seed.shape[1]
    of_sum = by_seed.sum(1).var(0, ddof=1)
    return np.maximum(of_sum - by_seed.var(0, ddof=1).sum(0), 0.0) / max(count * (count - 1), 1)


class Correlation(NamedTuple):
    """A mean of correlations and its interval; `share` is the seeds' of its variance, see `of_seeds`."""

    value: float
    low: float
    high: float
    share: float


def of_correlation(value: float, count: int, rank: bool) -> Bounds:
    """Fisher's interval of a correlation of `count` pairs, by its inverse hyperbolic tangent; NaN below four.

    Pearson's with variance 1 / (count - 3); with `rank` Spearman's, with (1 + value^2 / 2) / (count - 3) (Bonett and
    Wright, 2000), a perfect order taken half a step below 1, since few pairs can be in order by chance. Ranks of six
    pairs come in steps, so that coverage there is 95 to 98.5%.
    """
    return of_correlations([value], count, rank)[1:3]


def of_correlations(by_seed: Sequence[float], count: int, rank: bool, alike: float = 1.0) -> Correlation:
    """The mean over seeds of their correlations of `count` pairs each, and its interval; see `of_correlation`.

    The mean is taken of inverse hyperbolic tangents. What seeds differ by widens the interval, by `of_seeds`: pairs of
    one seed share its luck, so that to take all for independent draws would tell what another seed does not bear out.
    Of Fisher's variance v the pairs bring v alike to all seeds in common, and the rest to each by itself.

    Args:
      by_seed: each seed's correlation; of one seed the interval is Fisher's.
      count: of pairs of a seed.
      rank: whether they are Spearman's.
      alike: how much of it seeds share, see `likeness`; all of it is cautious.
    """
    values = np.asarray(by_seed, float)
    if not (np.isnan(values) | (np.abs(values) <= 1)).all():
        raise ValueError(f"expected a correlation in [-1, 1], got {values[~(np.abs(values) <= 1)][0]:g}")
    # A perfect order of ranks is taken half a step below 1.
    most = 1 - (6 / max(count**3 - count, 1) if rank else 1e-12)
    scaled = np.arctanh(np.clip(values, -most, most))
    value = float(values[0] if len(values) == 1 else np.tanh(scaled.mean()))
    if count < 4 or math.isnan(value):
        return Correlation(value, math.nan, math.nan, 1.0)
    variance = (1 + value**2 / 2 if rank else 1.0) / (count - 3)
    half = stats.norm.ppf(0.975) * math.sqrt(variance)
    # The least is what the mean varies by where seeds have no luck of their own.
    common = (variance * alike, variance * (alike + (1 - alike) / len(values)))
    low, high = of_seeds(scaled, *common) if len(values) > 1 else (scaled[0] - half, scaled[0] + half)
    share = float(share_of_seeds(scaled, *common)) if len(values) > 1 else 0.0
    return Correlation(value, float(np.tanh(low)), float(np.tanh(high)), share)


def likeness(x: np.ndarray, y: np.ndarray, rank: bool) -> float:
    """How alike seeds deviate from their own lines, in 0..1: the mean correlation of two seeds' residuals of y on x.

    Args:
      x, y: pairs `[seeds, points]`, the same points, for instance kinds of network, for every seed.
      rank: whether lines are through ranks.

    1 for one seed, and where a seed's x are all alike; seeds in perfect order have no residuals and are left out.
    """
    x, y = (stats.rankdata(of, axis=1) if rank else np.asarray(of, float) for of in (x, y))
    x, y = (of - of.mean(1, keepdims=True) for of in (x, y))
    if len(x) < 2 or (np.ptp(x, axis=1) == 0).any():
        return 1.0
    left = y - x * ((x * y).sum(1) / (x**2).sum(1))[:, None]
    lengths = np.linalg.norm(left, axis=1)
    unit = (left / np.maximum(lengths, 1e-9)[:, None])[lengths > 1e-9]
    if len(unit) < 2:
        return 1.0
    return float(np.clip(((unit.sum(0) ** 2).sum() / len(unit) - 1) / (len(unit) - 1), 0, 1))


def of_seeds_and_rows(values: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> tuple[Any, Any, Any]:
    """A statistic of rows, for instance images, averaged over seeds: its value and both bounds.

    Args:
      values: `[seeds, rows, ...]`, the same rows for every seed.
      statistic: of `[rows, ...]`, over the first axis, whatever axes follow.

    With one seed the interval is over rows alone; with more it holds seeds too, by `of_seeds`.
    """
    if len(values) == 1:
        return np.asarray(statistic(values[0]), float), *of_many(values[0], statistic)
    by_row = np.moveaxis(values, 1, 0)
    estimates = np.asarray(statistic(by_row), float)
    drawn = draws(by_row, statistic)
    least = drawn.var(0, ddof=1).mean(0) / len(values)
    return estimates.mean(0), *of_seeds(estimates, shared_variance(drawn), least)
