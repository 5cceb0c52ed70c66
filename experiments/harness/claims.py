"""Claims and verdicts by one rule: a number with a 95% interval, and the side of zero it should be on.

Every claim is a row of the columns below; what an experiment claims stands in its own file.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.harness.tables import Row
from robgrad import intervals

HOLDS, FAILS, UNTESTED, UNTELLABLE = "holds", "does not hold", "not tested at this size", "cannot be told"
RULE = (
    "Verdicts by rule. An order holds if the 95% interval of each step between neighbours lies on the claimed side of "
    "zero, and does not hold if that of any step lies wholly on the other side. A sign holds if the 95% interval of "
    "the correlation or difference lies on the published side of zero, and does not hold if wholly on the other; where "
    "a claim grants so many points, zero is moved by them. "
    "A published number is judged at the paper's own sizes alone. It does not hold if it lies outside our 95% interval "
    "by more than can be misread off a figure (0.02); it holds if it lies within and interval and misreading together "
    "are narrower than what separates it from its neighbours, and cannot be told otherwise. Everything else is not "
    "tested at this size: too few images, networks or repeats to tell, or smaller than the paper. The last column says "
    "what an interval is over; of one seed it knows nothing of other seeds, and neither does its verdict."
)
COLUMNS = {
    "section": "section",
    "claim": "claim",
    "verdict": "verdict",
    "group": "group",
    "published": "published",
    "ours": "ours",
    "low": "95% from",
    "high": "to",
    "over": "interval over",
}
MARKS = {HOLDS: "good", FAILS: "bad", UNTESTED: "open", UNTELLABLE: "open"}
READING_ERROR = 0.02


def verdict(low, high) -> str:
    """By the intervals of what should be above zero, one or several."""
    low, high = np.atleast_1d(low), np.atleast_1d(high)
    if np.all(low > 0):
        return HOLDS
    return FAILS if np.any(high < 0) else UNTESTED


def bounded(name: str, values: np.ndarray) -> Row:
    """Mean and interval of `[seed, image]` as columns of a row: `name`, `name_low`, `name_high`."""
    found = intervals.of_seeds_and_rows(values * 1.0, intervals.mean)
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, found), strict=True))


class Claim(NamedTuple):
    """What is claimed: where, what, of which group of networks, what was published, and what an interval is over."""

    section: str
    text: str
    group: str
    published: str
    over: str


def row(claim: Claim, ours: str, low, high, judged: str) -> Row:
    """A row of `COLUMNS`."""
    values = (claim.section, claim.text, judged, claim.group, claim.published, ours, low, high, claim.over)
    return dict(zip(COLUMNS, values, strict=True))


def gain(claim: Claim, gains: np.ndarray, margin: float = 0.0, note: str = "") -> Row:
    """The claim that paired differences `[seed, image]` are above zero on average, or above minus a margin."""
    value, low, high = map(float, intervals.of_seeds_and_rows(gains * 1.0, intervals.mean))
    return row(claim, f"{value:+.3f}{note}", low, high, verdict(low + margin, high + margin))


def untested(claim: Claim) -> Row:
    """A claim of which nothing could be measured, for instance because no attack succeeded."""
    return row(claim, "-", None, None, UNTESTED)


def is_papers(row: Row) -> bool:
    """Whether a claim was published, as opposed to a test of ours."""
    return row["published"] != "-"


def summed(found: Sequence[str]) -> str:
    """Verdicts of groups in a few words, failures first."""
    counts = {mark: found.count(mark) for mark in (FAILS, HOLDS, UNTELLABLE, UNTESTED)}
    said = {UNTESTED: "not tested"}
    parts = [f"{said.get(mark, mark)} in {count} of {len(found)}" for mark, count in counts.items() if count]
    return said.get(found[0], found[0]) if len(found) == 1 else ", ".join(parts)


def worst(found: Sequence[str]) -> str:
    """The verdict to be read first of several."""
    return next(mark for mark in (FAILS, UNTELLABLE, UNTESTED, HOLDS) if mark in found)


def order(claim: Claim, values: Sequence[float], steps, rises: bool = False) -> Row:
    """The claim that values fall, or rise, by the bounds `(low, high)` of the steps between neighbours, claimed > 0."""
    low, high = (np.atleast_1d(bound) for bound in steps)
    ours = ", ".join(f"{value:.3g}" for value in values) + f"; smallest {'rise' if rises else 'fall'}"
    least = int(np.argmin(low))
    return row(claim, ours, float(low[least]), float(high[least]), verdict(low, high))


def ordered(claim: Claim, values: np.ndarray, statistic: Callable[[np.ndarray], Any], rises: bool = False) -> Row:
    """The claim that a statistic of `[examples, networks]`, one value a network, falls, or rises, over networks.

    Args:
      claim: what is claimed.
      values: `[seeds, examples, networks]`, examples paired.
      statistic: of one seed's `[examples, ...]`, over the first axis, whatever axes follow.
      rises: what is claimed.
    """
    if not np.isfinite(values).any(axis=1).all():
        return untested(claim)
    sign = 1 if rises else -1
    averages = np.mean(statistic(np.moveaxis(values, 1, 0)), axis=0)
    _, *steps = intervals.of_seeds_and_rows(values, lambda draw: sign * np.diff(statistic(draw)))
    return order(claim, averages, steps, rises)


def spread(seeds: int, rest: str) -> str:
    """What an interval is over."""
    return f"{seeds} seeds, {rest}" if seeds > 1 else f"{rest}; one seed"


def number(published: float, neighbours: Sequence[float], low: float, high: float, full: bool) -> str:
    """The verdict of a published number read off a figure, among published neighbours, by our interval."""
    if not full or not np.isfinite([low, high]).all():
        return UNTESTED
    if not low - READING_ERROR <= published <= high + READING_ERROR:
        return FAILS
    apart = min(abs(published - other) for other in neighbours if other != published)
    return HOLDS if (high - low) / 2 + READING_ERROR < apart else UNTELLABLE
