r"""Section 3.3: accuracy against the faithfulness of gradients, and two ways out of the trade-off.

Takes the run of `experiments.roar_kar` with the same flags, running it first where it has not finished, and
draws its scores against test accuracy.

    python -m experiments.tradeoff
    python -m experiments.tradeoff --dataset=cifar10 --preset=paper

Expected: ROAR scores fall with accuracy (published rank correlations -0.91 to -0.97 on CIFAR-10), and so do
KAR's for Gradient * Input (-0.56 to -0.82). Ways out: the global Gradient * Input scores above the local Gradient, and
l-inf training gains more in KAR than l2 training and loses little in ROAR.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import benchmarks
from experiments.harness.measurement.benchmarks import RetrainingConfig
from experiments.harness.pages.tables import Row
from experiments.harness.training.specs import Spec, specs_of
from experiments.harness.verdicts import claims, correlations
from robgrad import faithfulness
from robgrad.faithfulness import KAR, RANDOM, ROAR

LOCAL, GLOBAL = "gradient", "gradient_times_input"


def tabulate(config: RetrainingConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """The scores of the run, their correlations with accuracy, mean scores by norm and attribution."""
    rows = benchmarks.rows_of(config, arrays)
    return {
        "rows": rows,
        "correlations": correlations.table_of(config, rows, "accuracy"),
        "means": means(config, rows),
    }


def means(config: RetrainingConfig, rows: Sequence[Row]) -> list[Row]:
    """Mean score of the robust networks of each norm, and of each attribution over all."""
    table = []
    for benchmark, attribution in itertools.product((ROAR, KAR), config.attributions):
        for norm in config.norms:
            scores = [
                row["score"]
                for row in rows
                if (row["benchmark"], row["attribution"], row["train_norm"]) == (benchmark, attribution, norm)
            ]
            named = {"benchmark": benchmark, "attribution": attribution, "train_norm": norm}
            table.append(named | {"mean_score": float(np.mean(scores))})
    return table


def claim(config: RetrainingConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """The sign of each group's correlation with accuracy, and the two ways out."""
    yield from correlations.claims_of("3.3", tables["correlations"], "test accuracy")
    yield from ways_out(config, areas_of(config, arrays))


Areas = Mapping[tuple[Spec, str, str], np.ndarray]


def areas_of(config: RetrainingConfig, arrays: experiment.Arrays) -> Areas:
    """What each test image and retraining seed contributes to the scores of robust networks, `[seed, image]`."""
    hits = benchmarks.hits_of(config, arrays)
    return {
        (spec, benchmark, attribution): faithfulness.areas(
            benchmark, config.percentiles, hits(spec, benchmark, attribution), hits(spec, benchmark, RANDOM)
        )
        for spec in specs_of(config)
        if spec.norm
        for benchmark, attribution in itertools.product((ROAR, KAR), config.attributions)
    }


def ways_out(config: RetrainingConfig, areas: Areas) -> Iterator[Row]:
    """The global attribution above the local one, and what l-inf training gains over l2."""
    if not {LOCAL, GLOBAL} <= {*config.attributions}:
        return
    specs = list(dict.fromkeys(spec for spec, _, _ in areas))
    for benchmark in (ROAR, KAR):
        gains = [(one.seed, areas[one, benchmark, GLOBAL] - areas[one, benchmark, LOCAL]) for one in specs]
        text = f"{benchmark.upper()}: the global Gradient * Input scores above the local Gradient"
        yield _above(config, text, "robust networks", "above", by_seed(gains))
    pairs = pairs_of(specs)
    if not pairs:
        return
    gained = {
        benchmark: by_seed(
            [
                (linf.seed, areas[linf, benchmark, attribution] - areas[l2, benchmark, attribution])
                for linf, l2 in pairs
                for attribution in (LOCAL, GLOBAL)
            ]
        )
        for benchmark in (ROAR, KAR)
    }
    group = "strengths paired by rank"
    yield _above(config, "KAR: l-inf training scores above l2 training", group, "above", gained[KAR])
    # What is gained in ROAR makes up for no loss in KAR.
    both = gained[KAR] + (gained[ROAR] if gained[ROAR].mean() < 0 else 0.0)
    text = "l-inf training gains more in KAR over l2 than it loses in ROAR"
    yield _above(config, text, group, "gains much, loses little", both)


def by_seed(gains: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """Mean gains `[seed, image]` over networks, from those of each with its seed `[retraining, image]`.

    Seeds are the networks', whose retrainings are averaged; where all have one seed, they are the retrainings.
    """
    seeds = dict.fromkeys(seed for seed, _ in gains)
    means = [np.mean([gain for own, gain in gains if own == seed], axis=0) for seed in seeds]
    return benchmarks.of_seeds(means)


def _above(config: RetrainingConfig, text: str, group: str, published: str, areas: np.ndarray) -> Row:
    """The claim that areas `[seed, image]` are above zero on average."""
    over = claims.Over(config.network_seeds, f"{config.retraining_seeds} retrainings, {areas.shape[1]} images")
    low, high = faithfulness.bounds(areas)
    one = claims.Claim("3.3", text, group, published, over)
    ours = f"{areas.mean():+.4f} on average"
    return claims.row(one, ours, float(low), float(high), claims.Steps(low, high))


def pairs_of(specs: Sequence[Spec]) -> list[tuple[Spec, Spec]]:
    """l-inf networks with l2 networks of the same loss and seed, from the weakest to the strongest."""

    def by_strength(norm: str, loss: str | None, seed: int) -> list[Spec]:
        mine = [one for one in specs if (one.norm, one.loss, one.seed) == (norm, loss, seed)]
        return sorted(mine, key=lambda one: one.epsilon)

    groups = dict.fromkeys((one.loss, one.seed) for one in specs)
    return [
        pair for group in groups for pair in zip(by_strength("linf", *group), by_strength("l2", *group), strict=False)
    ]


def draw(workdir: Path, config: RetrainingConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Scores against accuracy."""
    del arrays
    correlations.draw(workdir, config, tables["rows"], tables["correlations"], "accuracy", "test accuracy")


EXPERIMENT = experiment.Experiment(
    name="tradeoff",
    title="3.3 Accuracy against faithful gradients",
    question="Does accuracy have to be given up for faithful gradients, and are there ways out? The paper names two: "
    "attributions that are global, such as Gradient * Input, and l-inf training.",
    config=RetrainingConfig,
    measure=benchmarks.measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns=benchmarks.COLUMNS,
    others={
        "correlations": ("Correlations of scores with test accuracy", correlations.COLUMNS),
        "means": (
            "Mean scores of the robust networks",
            ("benchmark", "attribution", "train_norm", "mean_score"),
        ),
    },
    captions={
        "roar_accuracy_*.svg": "ROAR scores against test accuracy ({} training); in the paper all lines fall.",
        "kar_accuracy_*.svg": "KAR scores against test accuracy ({} training); in the paper lines fall but for "
        "Gradient with l2 training.",
    },
    paper_datasets=("cifar10",),
    reads="roar_kar",
    takes="seven minutes, or a second after `roar_kar`",
    picture="roar_accuracy_xent.svg",
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
