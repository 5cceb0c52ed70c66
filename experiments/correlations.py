"""Correlations of ROAR and KAR scores with training strength and test accuracy, beside the paper's."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from experiments import launch
from robgrad import report
from robgrad.attributions import ATTRIBUTIONS
from robgrad.retraining import KAR, ROAR

CORRELATED = ("benchmark", "against", "train_norm", "train_loss", "attribution")
COLUMNS = (
    *CORRELATED,
    *(f"{name}{suffix}" for name in ("linear", "rank") for suffix in ("", "_low", "_high", "_published")),
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


def points(rows: Sequence[report.Row], benchmark: str, against: str, norm: str, loss: str, attribution: str):
    """Abscissae and scores of one group of networks, the standard one at strength 0."""
    chosen = [
        row
        for row in rows
        if row["benchmark"] == benchmark
        and row["attribution"] == attribution
        and (row["train_norm"], row["train_loss"]) in ((norm, loss), (None, None))
    ]
    largest = max(row["train_epsilon"] for row in chosen) or 1.0
    x = [row["train_epsilon"] / largest if against == "strength" else row["test_accuracy"] for row in chosen]
    return np.array(x), np.array([row["score"] for row in chosen])


def table_of(config, rows: Sequence[report.Row]) -> list[report.Row]:
    """Linear (Pearson) and rank (Spearman) correlations of scores, with 95% intervals by Fisher's transformation.

    For ranks with the variance of Fieller et al. (1957), and a perfect order taken half a step below 1, since
    few networks can be in order by chance.
    """
    table = []
    for benchmark, against in _PUBLISHED:
        for loss, attribution, norm in itertools.product(config.train_losses, ATTRIBUTIONS, config.norms):
            x, y = points(rows, benchmark, against, norm, loss, attribution)
            row: report.Row = dict(zip(CORRELATED, (benchmark, against, norm, loss, attribution), strict=True))
            row["networks"] = len(x)
            paper = published(benchmark, against, norm, loss, attribution)
            tests = (("linear", stats.pearsonr), ("rank", stats.spearmanr))
            for (name, function), theirs in zip(tests, paper, strict=True):
                value = function(x, y).statistic if len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0 else math.nan
                count, rank = len(x), name == "rank"
                spread = 1.96 * math.sqrt((1.06 if rank else 1.0) / (count - 3)) if count > 3 else math.inf
                most = 1 - (6 / (count**3 - count) if rank and count > 2 else 1e-12)
                centre = np.arctanh(np.clip(value, -most, most))
                row |= {
                    name: value,
                    f"{name}_low": np.tanh(centre - spread),
                    f"{name}_high": np.tanh(centre + spread),
                    f"{name}_published": theirs,
                }
            table.append(row)
    return table


def draw(workdir: Path, config, rows, table: Sequence[report.Row], against: str, xlabel: str) -> None:
    """A figure for each benchmark and training loss: scores against `against`, lines fitted, correlations named."""
    for benchmark, loss in itertools.product((ROAR, KAR), config.train_losses):
        series = {}
        for row in table:
            if (row["benchmark"], row["against"], row["train_loss"]) == (benchmark, against, loss):
                norm, attribution = row["train_norm"], row["attribution"]
                values = ", ".join("-" if row[name] is None else f"{row[name]:.2f}" for name in ("linear", "rank"))
                label = f"{norm}, {attribution.replace('_', ' ')} ({values})"
                series[label] = points(rows, benchmark, against, norm, loss, attribution)
        report.scatter_figure(
            workdir / f"{benchmark}_{against}_{loss}.png", series, xlabel, f"{benchmark.upper()} score"
        )


def show(results, against: str) -> None:
    """Prints the correlations against strength or accuracy beside the paper's."""
    chosen = [row for row in results["correlations"] if row["against"] == against]
    launch.show(report.table(chosen, COLUMNS), "")
