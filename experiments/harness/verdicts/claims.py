"""Claims and verdicts by one rule: a number with a 95% interval, and the side of zero it should be on.

Every claim is a row of the columns below; what an experiment claims stands in its own file. A row holds the bounds of
what should be above zero, and `judged` gives all rows of a run their verdicts, since a claim pays for its many groups.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.harness.pages.tables import Row, with_interval
from robgrad import intervals

HOLDS, FAILS, UNTESTED, UNTELLABLE = "holds", "does not hold", "not told", "cannot be told"
ONCE, ONCE_REVERSED = "seen once", "the reverse seen once"
# Trainings below which a verdict would say nothing of others, and the chance of a wrong one in a family of groups.
LEAST_SEEDS, CHANCE = 3, 0.025
# Images below which an interval over them would be too narrow.
LEAST_IMAGES = 30
# Images of a network with a value below which its statistic is none: of one that did not train most have no gradient.
FEWEST = 20
RULE = (
    "A claim is tested in several groups of networks; all groups of one claim are a family. A claim of an order "
    "'holds' in a group if each step to the next network goes the claimed way by more than chance, and 'does not "
    "hold' if one step goes the other way by more than chance. A claim of a sign compares a difference or a "
    "correlation with zero, or with a margin where the claim names one. Both verdicts are corrected for the number of "
    "tests by Holm's method: if nothing is true, at most 5% of families have a wrong 'holds', and at most 5% a wrong "
    "'does not hold' (2.5% by the formula; simulated for 3 to 10 trainings). They are about trainings, so they need "
    "at least three, and use Student's t with one degree of freedom less than trainings; what images, or the points "
    "of a correlation, add is normal. With fewer trainings the verdict is 'seen once' or 'the reverse seen once', by "
    "the 95% interval over test images and retrainings: another training may differ. Everything else is 'not told': "
    "too few images (under 30; in one training, under 20 with a value), networks or trainings. The interval shown is "
    "the 95% interval of the smallest step, without Holm's correction. A published number is judged only at the "
    "paper's own sizes: it 'does not hold' if it lies outside our 95% interval by more than can be misread off a "
    "figure (0.02); it 'holds' if it lies within, and interval and misreading together are narrower than its distance "
    "from neighbouring numbers; else it 'cannot be told'. The error rates assume that differences between networks "
    "scatter symmetrically over trainings."
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
MARKS = {
    **{HOLDS: "good", FAILS: "bad", ONCE: "open", ONCE_REVERSED: "open"},
    **{UNTESTED: "open", UNTELLABLE: "open"},
}
READING_ERROR = 0.02


class Steps(NamedTuple):
    """What should be above zero, by 95% bounds; as a person reads them they are `claims.row`'s.

    Attributes:
      low, high: of each step.
      share: the seeds' share of their variance, see `intervals.of_seeds`.
      fisher: whether these are inverse hyperbolic tangents of correlations.
    """

    low: Any
    high: Any
    share: Any = 1.0
    fisher: bool = False

    def least(self) -> "Steps":
        """The step that is least above zero."""
        low, high, share = (np.broadcast_to(of, np.shape(self.low)).ravel() for of in self[:3])
        place = int(np.argmin(np.where(np.isfinite(low), low, np.inf)))
        return Steps(float(low[place]), float(high[place]), float(share[place]), self.fisher)

    @classmethod
    def of_correlation(cls, found: intervals.Correlation, sign: int = 1) -> "Steps":
        """That a correlation has a sign, on the scale where it scatters evenly."""
        low, high = np.arctanh(np.clip(sorted((sign * found.low, sign * found.high)), -1 + 1e-12, 1 - 1e-12))
        return cls(low, high, found.share, True)


class Over(NamedTuple):
    """What an interval is over: so many trainings, and the rest in words."""

    seeds: int
    rest: str

    def __str__(self) -> str:
        """As a person reads it."""
        if self.seeds > 1:
            return f"{self.seeds} seeds, {self.rest}"
        return f"{self.rest}; one seed" if self.seeds else self.rest


def chances(steps: Steps, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """The chance of a step this far above zero if none rises, and of one this far below if none falls, `[steps]`.

    From the 95% bounds: the chance whose interval would just reach zero. Where the seeds' share is not known it is
    taken as all, which is cautious where images, or the points of a correlation, bring some.
    """
    low, high = np.atleast_1d(steps.low).astype(float), np.atleast_1d(steps.high).astype(float)
    share, half = np.broadcast_to(steps.share, low.shape), (high - low) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (low + high) / 2 / half * intervals.reach(0.025, seeds - 1, share)
    known = np.isfinite(low) & np.isfinite(high)
    tail = _chance_of(np.abs(np.nan_to_num(distance)), seeds - 1, share)
    above, below = np.where(distance > 0, tail, 1 - tail), np.where(distance > 0, 1 - tail, tail)
    above = np.where(known, np.where(half > 0, above, np.where(low > 0, 0.0, 1.0)), 1.0)
    below = np.where(known, np.where(half > 0, below, np.where(high < 0, 0.0, 1.0)), 1.0)
    return above, below


def _chance_of(distance: np.ndarray, degrees: float, share: np.ndarray) -> np.ndarray:
    """The chance whose interval reaches this many standard errors, the inverse of `intervals.reach`, by bisection."""
    alone = stats.t.sf(distance, degrees)
    if np.all(share == 1):
        return alone
    low, high = np.full(distance.shape, -60.0), np.log(np.maximum(alone, 1e-300))
    for _ in range(60):
        middle = (low + high) / 2
        far = intervals.reach(np.exp(middle), degrees, share) > distance
        low, high = np.where(far, middle, low), np.where(far, high, middle)
    return np.exp(high)


def rejected(chances: Sequence[float] | np.ndarray) -> np.ndarray:
    """Which of several hypotheses fall at `CHANCE` for all of them together, by Holm (1979)."""
    order = np.argsort(chances)
    kept = np.asarray(chances)[order] > CHANCE / np.arange(len(order), 0, -1)
    fallen = np.zeros(len(order), bool)
    fallen[order[: int(np.argmax(kept)) if kept.any() else len(order)]] = True
    return fallen


def verdicts(family: Sequence[Steps], seeds: int) -> list[str]:
    """The verdicts of all groups of one claim."""
    if seeds < LEAST_SEEDS:
        return [_once(steps) for steps in family]
    every = [chances(steps, seeds) for steps in family]
    holding = rejected([above.max() for above, _ in every])
    falling = rejected(np.concatenate([below for _, below in every]))
    ends = np.cumsum([len(below) for _, below in every])[:-1]
    failing = [steps.any() for steps in np.split(falling, ends)]
    return [FAILS if no else HOLDS if yes else UNTESTED for yes, no in zip(holding, failing, strict=True)]


def of_few(verdict: str, seeds: int) -> str:
    """A verdict that was reached otherwise, as the word that so many trainings allow."""
    return verdict if seeds >= LEAST_SEEDS else {HOLDS: ONCE, FAILS: ONCE_REVERSED}.get(verdict, verdict)


def _once(steps: Steps) -> str:
    low, high = np.atleast_1d(steps.low), np.atleast_1d(steps.high)
    if np.all(low > 0):
        return ONCE
    return ONCE_REVERSED if np.any(high < 0) else UNTESTED


def judged(rows: Iterable[Row]) -> list[Row]:
    """Rows of claims with their verdicts; each family is judged as a whole."""
    rows = list(rows)
    families: dict[tuple[str, str], list[Row]] = {}
    for one in rows:
        if isinstance(one["verdict"], Steps):
            families.setdefault((one["section"], one["claim"]), []).append(one)
    for family in families.values():
        seeds = min(one["over"].seeds for one in family)
        for one, found in zip(family, verdicts([one["verdict"] for one in family], seeds), strict=True):
            # What `power` asks of a record.
            one["judged"], one["verdict"] = one["verdict"].least()._asdict(), found
    return [one | {"over": str(one["over"])} for one in rows]


def of_rows(values: np.ndarray) -> tuple[Any, Any, Any]:
    """The mean of `[seed, image]` and its interval."""
    return intervals.of_seeds_and_rows(values * 1.0, intervals.mean)


def bounded(name: str, values: np.ndarray) -> Row:
    """Mean and interval of `[seed, image]` as columns of a row: `name`, `name_low`, `name_high`."""
    return with_interval(name, intervals.of_share(values) if np.isin(values, (0, 1)).all() else of_rows(values))


class Claim(NamedTuple):
    """What is claimed: where, what, of which group of networks, what was published, and what an interval is over."""

    section: str
    text: str
    group: str
    published: str
    over: Over


def row(claim: Claim, ours: str, low, high, judged: str | Steps) -> Row:
    """A row of `COLUMNS`, its verdict given, or the steps that `judged` makes it of."""
    values = (claim.section, claim.text, judged, claim.group, claim.published, ours, low, high, claim.over)
    return dict(zip(COLUMNS, values, strict=True))


def gain(claim: Claim, gains: np.ndarray, margin: float = 0.0, note: str = "") -> Row:
    """The claim that paired differences `[seed, image]` are above zero on average, or above minus a margin."""
    value, low, high = map(float, of_rows(gains))
    if gains.shape[1] < LEAST_IMAGES:
        low = high = math.nan
    return row(claim, f"{value:+.3f}{note}", low, high, Steps(low + margin, high + margin))


def untested(claim: Claim) -> Row:
    """A claim of which nothing could be measured, as where no attack succeeded; its family pays for it all the same."""
    return row(claim, "-", None, None, Steps(math.nan, math.nan))


def is_papers(row: Row) -> bool:
    """Whether a claim was published, as opposed to a test of ours."""
    return row["published"] != "-"


_FAILURES_FIRST = (FAILS, ONCE_REVERSED, UNTELLABLE, UNTESTED, ONCE, HOLDS)


def summed(found: Sequence[str]) -> str:
    """Verdicts of groups in a few words, failures first."""
    counts = {mark: found.count(mark) for mark in _FAILURES_FIRST}
    parts = [f"{mark} in {count} of {len(found)}" for mark, count in counts.items() if count]
    return found[0] if len(found) == 1 else ", ".join(parts)


def worst(found: Sequence[str]) -> str:
    """The verdict to be read first of several."""
    return next(mark for mark in _FAILURES_FIRST if mark in found)


def order(claim: Claim, values: Sequence[float], steps, rises: bool = False, last: str = "") -> Row:
    """The claim that values fall, or rise, by the bounds `(low, high)` of the steps between neighbours, claimed > 0.

    Where the last value is of something else than the others, `last` says of what.
    """
    low, high = (np.atleast_1d(bound) for bound in steps)
    said = [f"{value:.3g}" for value in values]
    said = [", ".join(said[:-1]), f"{last} {said[-1]}"] if last else [", ".join(said)]
    ours = "; ".join([*said, f"smallest {'rise' if rises else 'fall'}"])
    least = int(np.argmin(low))
    return row(claim, ours, float(low[least]), float(high[least]), Steps(low, high))


def ordered(
    claim: Claim, values: np.ndarray, statistic: Callable[[np.ndarray], Any], rises: bool = False, last: str = ""
) -> Row:
    """The claim that a statistic of `[examples, networks]`, one value a network, falls, or rises, over networks.

    Args:
      claim: what is claimed.
      values: `[seeds, examples, networks]`, examples paired.
      statistic: of one seed's `[examples, ...]`, over the first axis, whatever axes follow.
      rises: what is claimed.
      last: what the last value is of, where not of a network.
    """
    if np.isfinite(values).sum(axis=1).min() < min(FEWEST, values.shape[1]):
        return untested(claim)
    sign = 1 if rises else -1
    averages = np.mean(statistic(np.moveaxis(values, 1, 0)), axis=0)
    _, *steps = intervals.of_seeds_and_rows(values, lambda draw: sign * np.diff(statistic(draw)))
    if values.shape[1] < LEAST_IMAGES:
        steps = [np.full_like(bound, math.nan) for bound in steps]
    return order(claim, averages, steps, rises, last)


def number(published: float, neighbours: Sequence[float], low: float, high: float, full: bool) -> str:
    """The verdict of a published number read off a figure, among published neighbours, by our interval."""
    if not full or not np.isfinite([low, high]).all():
        return UNTESTED
    if not low - READING_ERROR <= published <= high + READING_ERROR:
        return FAILS
    apart = min(abs(published - other) for other in neighbours if other != published)
    return HOLDS if (high - low) / 2 + READING_ERROR < apart else UNTELLABLE
