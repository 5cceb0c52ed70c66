"""Curves of accuracy against the share of pixels, and the score: the area against pixels chosen at random."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robgrad import intervals
from robgrad.plots import axes_of

PERCENTILES = (10.0, 30.0, 50.0, 70.0, 90.0)
RANDOM = "random"
ROAR, KAR = "roar", "kar"


class Curve(NamedTuple):
    """A method's accuracy against the percentile, and its score against Random's.

    Attributes:
      percentiles: `[Q]`, of pixels removed (ROAR) or kept (KAR).
      mean, std: of the retrained networks' test accuracy over seeds, `[Q]`.
      random: Random's mean accuracies, `[Q]`.
      score: see `score`; `low` and `high` bound its 95% interval, over seeds and test images; with one seed over
        images alone.
    """

    percentiles: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    random: np.ndarray
    score: float
    low: float
    high: float

    def to_rows(self) -> list[dict[str, float]]:
        """A row for each percentile."""
        columns = {"percentile": self.percentiles, "accuracy": self.mean, "std": self.std, "random": self.random}
        return [dict(zip(columns, map(float, values), strict=True)) for values in zip(*columns.values(), strict=True)]

    def plot(self, axes: Any = None) -> Any:
        """Draws both curves, and returns the matplotlib axes."""
        axes = axes_of(axes)
        axes.errorbar(self.percentiles, self.mean, self.std, marker="o", capsize=2, label="attribution")
        axes.plot(self.percentiles, self.random, color="0.5", linestyle="--", label="random")
        title = f"score {self.score:.3f}, 95% from {self.low:.3f} to {self.high:.3f}"
        axes.set(xlabel="% of pixels", ylabel="test accuracy", title=title)
        axes.legend(frameon=False)
        return axes


def score(benchmark: str, percentiles: Sequence[float], attribution: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Area between Random's curve and the attribution's, `[..., Q]` to `[...]`; higher is better.

    Over the share of pixels from 0 to 1 by the trapezoid rule: Random minus the attribution for ROAR, the
    reverse for KAR. At both ends the curves meet (nothing removed: the untouched network's accuracy; all
    removed: chance), so that the area does not depend on either.
    """
    checked_benchmark(benchmark)
    attribution, random = np.asarray(attribution), np.asarray(random)
    checked_percentiles(percentiles, attribution.shape[-1:], random.shape[-1:])
    order = np.argsort(percentiles)
    gain = (attribution - random if benchmark == KAR else random - attribution)[..., order]
    gain = np.concatenate([np.zeros_like(gain[..., :1]), gain, np.zeros_like(gain[..., :1])], axis=-1)
    return np.trapezoid(gain, np.array([0.0, *np.asarray(percentiles)[order], 100.0]) / 100, axis=-1)


def checked_percentiles(percentiles: Sequence[float], *counts: Sequence[int]) -> np.ndarray:
    """Percentiles as numbers between 0 and 100, none twice.

    Args:
      percentiles: of pixels, in percent.
      counts: how many there should be, each as a shape of one axis.

    Raises:
      ValueError: if they are anything else.
    """
    try:
        values = np.asarray(percentiles, float)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 1 or not values.size or not np.all((values > 0) & (values < 100)):
        raise ValueError(f"expected a list of percentiles between 0 and 100, got {percentiles}")
    if 0 < values.max() < 1:
        raise ValueError(f"expected percentiles in percent, as 50 for a half, got shares: {percentiles}")
    for count in counts:
        if tuple(count) != values.shape:
            raise ValueError(f"expected accuracies at {len(values)} percentiles, got {list(count)} of them")
    return values


def checked_benchmark(benchmark: str) -> str:
    """A benchmark's name, if it is one.

    Raises:
      ValueError: if it is none.
    """
    if not isinstance(benchmark, str) or benchmark not in (ROAR, KAR):
        raise ValueError(f"expected a benchmark of {ROAR}, {KAR}, got {benchmark!r}")
    return benchmark


def areas(benchmark: str, percentiles: Sequence[float], hits: np.ndarray, random_hits: np.ndarray) -> np.ndarray:
    """What each test image and seed contributes to the score `[seeds, N]`, from hits `[Q, seeds, N]` (bool).

    A score is linear in the accuracies, so it is the mean of these areas.
    """
    return score(benchmark, percentiles, np.moveaxis(hits, 0, -1) * 1.0, np.moveaxis(random_hits, 0, -1) * 1.0)


def diff_roar(percentiles: Sequence[float], kar_hits: np.ndarray, roar_hits: np.ndarray) -> np.ndarray:
    """DiffROAR (Shah, Jain and Netrapalli, 2021) of each test image and seed, `[seeds, N]`; see `bounds`.

    Accuracy retrained on the k% of highest value alone, less that on the k% of lowest, averaged over k: the second is
    ROAR with the 100 - k% of highest value removed, so that nothing more is trained. Above zero the order of pixels is
    better than its reverse; random orders give zero.

    Args:
      percentiles: that hits are of, with 100 - k for every k.
      kar_hits, roar_hits: `[Q, seeds, N]` (bool).

    Raises:
      ValueError: if a k has no counterpart.
    """
    checked_percentiles(percentiles, np.shape(kar_hits)[:1], np.shape(roar_hits)[:1])
    # Of 12.1 and 87.9 the sum is 100 but for rounding.
    places = {round(float(value), 6): place for place, value in enumerate(percentiles)}
    wanted = [round(100 - float(value), 6) for value in percentiles]
    missing = [value for value in wanted if value not in places]
    if missing:
        raise ValueError(f"expected 100 - k for every percentile k, got {100 - missing[0]:g} without {missing[0]:g}")
    reverse = [places[value] for value in wanted]
    return (kar_hits * 1.0 - roar_hits[reverse]).mean(0)


def bounds(areas: np.ndarray) -> intervals.Bounds:
    """The 95% interval of the mean of areas `[seeds, N]`: over seeds and images, or over images of one seed.

    What the test images bring to all seeds is in closed form; seeds come by `intervals.of_seeds`.
    """
    if np.ndim(areas) != 2 or not np.size(areas):
        raise ValueError(f"expected areas [seeds, images], some of each, got shape {list(np.shape(areas))}")
    images = areas.shape[1]
    if len(areas) > 1:
        # Seeds that agree by chance say nothing of the images' share.
        agree = images > 1 and np.ptp(areas.mean(1)) == 0
        least = areas.var(1, ddof=1).mean() / (images * len(areas)) if agree else 0.0
        return intervals.of_seeds(areas.mean(1), intervals.shared_variance(areas.T) / images, least)
    half = 1.96 * areas[0].std(ddof=1) / np.sqrt(images)
    return areas.mean() - half, areas.mean() + half


def curve(benchmark: str, percentiles: Sequence[float], hits: np.ndarray, random_hits: np.ndarray) -> Curve:
    """Curve and score of a method from its networks' hits and Random's, each `[Q, seeds, N]` (bool)."""
    hits, random_hits = np.asarray(hits), np.asarray(random_hits)
    own = areas(benchmark, percentiles, hits, random_hits)
    low, high = bounds(own)
    accuracy, random = hits.mean(-1), random_hits.mean((-2, -1))
    return Curve(
        np.array(percentiles),
        accuracy.mean(-1),
        accuracy.std(-1),
        random,
        float(own.mean()),
        float(low),
        float(high),
    )
