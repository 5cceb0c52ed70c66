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

from experiments import roar_kar
from experiments.harness import claims, correlations, experiment
from experiments.harness.tables import Row
from experiments.roar_kar import RetrainingConfig
from robgrad.faithfulness import KAR, ROAR

LOCAL, GLOBAL = "gradient", "gradient_times_input"


def tabulate(config: RetrainingConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """The scores of the run, their correlations with accuracy, mean scores by norm and attribution."""
    rows = roar_kar.tabulate(config, arrays)["rows"]
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
    del arrays
    yield from correlations.claims_of("3.3", tables["correlations"], "test accuracy")
    yield from ways_out(tables["rows"])


def ways_out(rows: Sequence[Row]) -> Iterator[Row]:
    """The global attribution above the local one, and what l-inf training gains over l2."""
    identity = ("benchmark", "attribution", "train_norm", "train_loss", "train_epsilon", "network_seed")
    scores = {tuple(row[name] for name in identity): row["score"] for row in rows if row["train_norm"]}
    for benchmark in (ROAR, KAR):
        pairs = [
            (score, scores.get((benchmark, LOCAL, *group)))
            for (name, attribution, *group), score in scores.items()
            if (name, attribution) == (benchmark, GLOBAL)
        ]
        differences = [one - other for one, other in pairs if other is not None]
        text = f"{benchmark.upper()}: the global Gradient * Input scores above the local Gradient"
        over = f"{len(differences)} networks"
        yield claims.difference(claims.Claim("3.3", text, "robust networks", "above", over), differences)
    gains = {benchmark: l_inf_gains(scores, benchmark) for benchmark in (ROAR, KAR)}
    if gains[KAR]:
        group, over = "strengths paired by rank", f"{len(gains[KAR])} pairs of networks"
        text = "KAR: l-inf training scores above l2 training"
        yield claims.difference(claims.Claim("3.3", text, group, "above", over), gains[KAR])
        # What is gained in ROAR makes up for no loss in KAR.
        both = [kar + min(roar, 0.0) for kar, roar in zip(gains[KAR], gains[ROAR], strict=True)]
        text = "l-inf training gains more in KAR over l2 than it loses in ROAR"
        yield claims.difference(claims.Claim("3.3", text, group, "gains much, loses little", over), both)


def l_inf_gains(scores: Mapping[tuple, float], benchmark: str) -> list[float]:
    """Scores of l-inf networks less those of l2 networks, from the weakest to the strongest, all else averaged."""

    def by_strength(norm: str, loss: str) -> list[float]:
        chosen: dict[float, list[float]] = {}
        for (name, _, *group, epsilon, _), score in sorted(scores.items(), key=lambda item: item[0][4]):
            if name == benchmark and tuple(group) == (norm, loss):
                chosen.setdefault(epsilon, []).append(score)
        return [float(np.mean(each)) for each in chosen.values()]

    return [
        one - other
        for loss in sorted({key[3] for key in scores})
        for one, other in zip(by_strength("linf", loss), by_strength("l2", loss), strict=False)
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
    presets=roar_kar.PRESETS,
    measure=roar_kar.measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns=roar_kar.EXPERIMENT.columns,
    others={
        "correlations": ("Correlations of scores with test accuracy", correlations.COLUMNS),
        "means": (
            "Mean scores of the robust networks",
            ("benchmark", "attribution", "train_norm", "mean_score"),
        ),
    },
    captions={
        "roar_accuracy_*.png": "ROAR scores against test accuracy ({} training); in the paper all lines fall.",
        "kar_accuracy_*.png": "KAR scores against test accuracy ({} training); in the paper lines fall but for "
        "Gradient with l2 training.",
    },
    estimate=lambda config, dataset, options, others: iter(()),
    paper_datasets=("cifar10",),
    reads=roar_kar.EXPERIMENT,
    takes="four minutes, or a second after `roar_kar`",
    picture="roar_accuracy_xent.png",
)

if __name__ == "__main__":
    experiment.main(EXPERIMENT, __doc__)
