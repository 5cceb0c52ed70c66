"""What a run can tell before it is run, and how many trainings its claims need, by an earlier run's intervals."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, stats

from experiments.harness.pages.tables import Row
from experiments.harness.verdicts import claims
from robgrad import intervals

# With this chance a run should tell what is there.
WANTED = 0.8
MOST_SEEDS = 1000
RECORDS = Path(__file__).parents[2] / "results"
COLUMNS = {
    "claim": "claim",
    "groups": "groups",
    "seen": "smallest step seen",
    "told": "this run tells",
    "seeds": "seeds it takes",
}


def deviation_of(low: float, high: float, seeds: int, share: float = 1.0) -> float:
    """The standard deviation of one training's value, from the 95% interval of the mean of several.

    What the test images add counts as the trainings' own, though more trainings do not lessen it: where it is large,
    the seeds that are named are too few. `share` is the trainings' share of the variance, see `intervals.of_seeds`.
    """
    return (high - low) / 2 / float(intervals.reach(0.025, seeds - 1, share)) * math.sqrt(seeds)


def chance_of_telling(effect: float, deviation: float, seeds: int, tests: int) -> float:
    """The chance that a step of this size is told from zero by so many trainings, one of so many tests.

    P(T > t) for a noncentral t of seeds - 1 degrees of freedom, at the level that Holm's method asks of the first of
    the tests; 0 below the trainings that a verdict needs.
    """
    if seeds < claims.LEAST_SEEDS:
        return 0.0
    if deviation == 0:
        return float(effect > 0)
    bound = stats.t.isf(claims.CHANCE / tests, seeds - 1)
    return float(stats.nct.sf(bound, seeds - 1, effect / deviation * math.sqrt(seeds)))


def least_effect(deviation: float, seeds: int, tests: int) -> float:
    """The smallest step that so many trainings tell with the chance `WANTED`; infinite where they are too few."""
    if seeds < claims.LEAST_SEEDS:
        return math.inf
    if deviation == 0:
        return 0.0
    missing = lambda effect: chance_of_telling(effect, deviation, seeds, tests) - WANTED  # noqa: E731
    most = deviation
    while missing(most) < 0:
        most *= 2
    return float(optimize.brentq(missing, 0.0, most))


def seeds_needed(effect: float, deviation: float, tests: int) -> int | None:
    """The fewest trainings that tell a step of this size with the chance `WANTED`; None where `MOST_SEEDS` do not."""
    if chance_of_telling(effect, deviation, MOST_SEEDS, tests) < WANTED:
        return None
    least, most = claims.LEAST_SEEDS, MOST_SEEDS
    while least < most:
        middle = (least + most) // 2
        if chance_of_telling(effect, deviation, middle, tests) >= WANTED:
            most = middle
        else:
            least = middle + 1
    return least


def rows_of(found: Sequence[Mapping[str, Any]], seeds: int) -> list[Row]:
    """A row for each claim of an earlier run: its weakest group's step, and what a run of so many seeds would tell.

    Above zero is as claimed: a fall, or what is gained beyond a margin, too.

    Args:
      found: claims of `results.json`, over three trainings or more; others are left out.
      seeds: of the run that is planned.
    """
    families: dict[str, list[Mapping[str, Any]]] = {}
    for one in found:
        families.setdefault(one["claim"], []).append(one)
    rows = []
    for text, groups in families.items():
        steps = []
        for one in groups:
            trainings, known = seeds_of(one), one.get("judged")
            low, high, share, fisher = known.values() if known else (math.nan, math.nan, 1.0, False)
            # A record has null for what is not known.
            if trainings >= claims.LEAST_SEEDS and None not in (low, high) and np.isfinite([low, high]).all():
                steps.append(((low + high) / 2, deviation_of(low, high, trainings, share), fisher))
        if not steps:
            continue
        effect, deviation, fisher = min(steps, key=lambda step: step[0] / step[1] if step[1] else np.inf)
        needed = seeds_needed(effect, deviation, len(groups)) if effect > 0 else None
        plain = math.tanh if fisher else float
        rows.append(
            {
                "claim": text,
                "groups": len(groups),
                "seen": plain(effect),
                "told": plain(least_effect(deviation, seeds, len(groups))),
                "seeds": needed or (f"over {MOST_SEEDS}" if effect > 0 else "none: it went the other way"),
            }
        )
    return rows


def seeds_of(claim: Mapping[str, Any]) -> int:
    """Over how many trainings a recorded claim's interval is; 1 where it says nothing of them."""
    said = re.match(r"(\d+) seeds", str(claim["over"]))
    return int(said[1]) if said else 1


def pilot(records: Path, experiment: str, dataset: str) -> tuple[str, list[Mapping[str, Any]]] | None:
    """The recorded run of an experiment on a data set that has most seeds: its name and claims; None without one."""
    known = []
    for path in sorted(records.glob("*/results.json")):
        results = json.loads(path.read_text())
        settings = results.get("config", {})
        if results.get("experiment") == experiment and settings.get("dataset", dataset) == dataset:
            known.append((settings.get("network_seeds", 1), path.parent.name, results.get("claims", [])))
    return max(known)[1:] if known else None
