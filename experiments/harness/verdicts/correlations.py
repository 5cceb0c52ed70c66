"""Correlations of ROAR and KAR scores with training strength and test accuracy, beside the paper's."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of, with_interval
from experiments.harness.verdicts import claims
from robgrad import intervals
from robgrad.faithfulness import KAR, ROAR

CORRELATED = ("benchmark", "against", "train_norm", "train_loss", "attribution")
COLUMNS = (
    *CORRELATED,
    *("linear", "linear_published", "rank", "rank_published"),
)
_GRADIENT, _TIMES_INPUT = "gradient", "gradient_times_input"
_GROUPS = list(itertools.product(("xent", "cw"), (_TIMES_INPUT, _GRADIENT), ("l2", "linf")))
# Linear and rank correlation of each group in turn.
_PUBLISHED = {
    (ROAR, "strength"): (
        ".9488 .9455 .9505 .9351 .9457 .9727 .9114 .8857 .9503 .9571 .9744 .9870 .9600 .9883 .9603 .9857"
    ),
    (KAR, "strength"): (
        ".6284 .6260 .8911 .8766 -.5294 -.4623 .5578 .5779 .5316 .5597 .6957 .6701 -.7680 -.7844 .2541 .2909"
    ),
    (ROAR, "accuracy"): (
        "-.9765 -.9584 -.9597 -.9377 -.9699 -.9701 -.9352 -.9091 "
        "-.9636 -.9273 -.9585 -.9701 -.9686 -.9597 -.9402 -.9740"
    ),
    (KAR, "accuracy"): (
        "-.6505 -.5623 -.8261 -.8169 .4931 .4805 -.5062 -.5156 -.5565 -.5922 -.6547 -.6494 .7215 .7390 -.1934 -.2494"
    ),
}


def published(benchmark: str, against: str, norm: str, loss: str, attribution: str) -> Sequence[float | None]:
    """The paper's linear and rank correlation on CIFAR-10; None for attributions that it does not have."""
    if (loss, attribution, norm) not in _GROUPS:
        return None, None
    values = [float(value) for value in _PUBLISHED[benchmark, against].split()]
    index = _GROUPS.index((loss, attribution, norm))
    return values[2 * index], values[2 * index + 1]


def points(rows: Sequence[Row], benchmark: str, against: str, norm: str, loss: str, attribution: str):
    """Abscissae and scores of one group, a point for each kind of network, averaged over its seeds.

    Seeds of one kind are no independent points: they share the kind's own deviation. Standard networks are at 0.
    """
    chosen = [
        row
        for row in rows
        if row["benchmark"] == benchmark
        and row["attribution"] == attribution
        and (row["train_norm"], row["train_loss"]) in ((norm, loss), (None, None))
    ]
    largest = max(row["train_epsilon"] for row in chosen) or 1.0
    kinds: dict[str, list[tuple[float, float]]] = {}
    for row in chosen:
        x = row["train_epsilon"] / largest if against == "strength" else row["test_accuracy"]
        kinds.setdefault(row["network"], []).append((x, row["score"]))
    xs, ys = np.transpose([np.mean(pairs, axis=0) for pairs in kinds.values()])
    return xs, ys


def table_of(config, rows: Sequence[Row], against: str) -> list[Row]:
    """Linear (Pearson) and rank (Spearman) correlations of scores, the mean over seeds, with 95% intervals.

    Each kind of network is a point. Networks of one seed share its luck, so that the interval holds the seeds, too.
    """
    by_seed = [[row for row in rows if row["network_seed"] == seed] for seed in range(config.network_seeds)]
    table = []
    for benchmark in (ROAR, KAR):
        for loss, attribution, norm in itertools.product(config.train_losses, config.attributions, config.norms):
            alone = [points(some, benchmark, against, norm, loss, attribution) for some in by_seed]
            row: Row = dict(zip(CORRELATED, (benchmark, against, norm, loss, attribution), strict=True))
            row["networks"] = len(alone[0][0])
            row["network_seeds"] = config.network_seeds
            paper = published(benchmark, against, norm, loss, attribution)
            tests = (("linear", stats.pearsonr), ("rank", stats.spearmanr))
            for (name, function), theirs in zip(tests, paper, strict=True):
                each = [_correlation(function, *pair) for pair in alone]
                xs, ys = np.swapaxes(alone, 0, 1)
                alike = intervals.likeness(xs, ys, name == "rank")
                found = intervals.of_correlations(each, row["networks"], name == "rank", alike)
                row |= {**with_interval(name, found[:3]), f"{name}_published": theirs, f"{name}_share": found.share}
            table.append(row)
    return table


def _correlation(function: Callable, x: np.ndarray, y: np.ndarray) -> float:
    return float(function(x, y).statistic) if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0 else math.nan


def draw(workdir: Path, config, rows, table: Sequence[Row], against: str, xlabel: str) -> None:
    """A figure for each benchmark and training loss: scores against `against`, lines fitted, correlations named."""
    for benchmark, loss in itertools.product((ROAR, KAR), config.train_losses):
        series = {}
        for row in table:
            if (row["benchmark"], row["train_loss"]) == (benchmark, loss):
                norm, attribution = row["train_norm"], row["attribution"]
                values = ", ".join("-" if not np.isfinite(row[n]) else f"{row[n]:.2f}" for n in ("linear", "rank"))
                label = f"{norm}, {attribution.replace('_', ' ')} ({values})"
                series[label] = points(rows, benchmark, against, norm, loss, attribution)
        figures.scatter_figure(
            workdir / f"{benchmark}_{against}_{loss}.svg", series, xlabel, f"{benchmark.upper()} score"
        )


def claims_of(section: str, table: Sequence[Row], abscissa: str) -> Iterator[Row]:
    """The sign of each group's rank correlation of scores, where the paper has published one."""
    for one in table:
        paper = one["rank_published"]
        if paper is None:
            continue
        verb = _verb(one["benchmark"], one["against"])
        over = claims.Over(one["network_seeds"], f"{one['networks']} kinds of network")
        text = f"{one['benchmark'].upper()} score {verb} with {abscissa}, as published (rank correlation)"
        group = f"{one['train_norm']}, {one['train_loss']}; {one['attribution'].replace('_', ' ')}"
        claim = claims.Claim(section, text, group, f"{paper:.2f} (CIFAR-10)", over)
        found = intervals.Correlation(*interval_of(one, "rank"), one["rank_share"])
        if not np.isfinite(found).all():
            yield claims.untested(claim)
            continue
        judged = claims.Steps.of_correlation(found, 1 if paper > 0 else -1)
        yield claims.row(claim, f"{found.value:.2f}", found.low, found.high, judged)


def _verb(benchmark: str, against: str) -> str:
    """What the published rank correlations do: all rise, all fall, or each group as it does."""
    signs = {value > 0 for value in map(float, _PUBLISHED[benchmark, against].split()[1::2])}
    return "rises or falls" if len(signs) > 1 else "rises" if signs == {True} else "falls"
