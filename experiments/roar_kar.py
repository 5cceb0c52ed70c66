r"""Section 3.2: adversarial training makes gradients faithful, measured by ROAR and KAR.

Trains a standard and many robust networks, ranks the pixels of every image by each attribution of each
network, and retrains fresh networks on the occluded images, a whole benchmark of a network as one stack.

    python -m experiments.roar_kar                                   # digits, seven minutes on 2 cores
    python -m experiments.roar_kar --attributions=gradient,gradient_random_projection
    python -m experiments.roar_kar --dataset=cifar10 --preset=paper  # 81 networks, 4,890 retrainings
    python -m experiments.roar_kar --dataset=cifar10 --preset=paper --epsilons=5 --retraining_seeds=1

Expected: ROAR scores rise with the training epsilon (published rank correlations 0.89 to 0.99 on CIFAR-10); KAR
scores rise for Gradient * Input (0.56 to 0.88), for Gradient only with l-inf training.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import benchmarks, evaluation
from experiments.harness.measurement.benchmarks import RetrainingConfig
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, with_interval
from experiments.harness.training.specs import Spec, kinds_of, specs_of
from experiments.harness.verdicts import claims, correlations
from robgrad import faithfulness, intervals
from robgrad.faithfulness import KAR, RANDOM, ROAR


def tabulate(config: RetrainingConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each network, benchmark and attribution; correlations with strength; an audit of Random."""
    hits, rows = benchmarks.hits_of(config, arrays), benchmarks.rows_of(config, arrays)
    seeds = range(config.network_seeds if benchmarks.has_own_random(config, arrays) else 1)
    audit = list(
        audit_of(config, lambda benchmark: np.concatenate([hits(Spec(seed=n), benchmark, RANDOM) for n in seeds], 1))
    )
    return {"rows": rows, "correlations": correlations.table_of(config, rows, "strength"), "audit": audit} | {
        "notes": evaluation.notes_of(specs_of(config), "l2", arrays)
    }


def audit_of(config: RetrainingConfig, random_hits: Callable[[str], np.ndarray]) -> Iterator[Row]:
    """Random keeping q% and Random removing the rest are one experiment twice: what they differ by is noise alone."""
    kept, removed = random_hits(KAR), random_hits(ROAR)
    for index, share in enumerate(config.percentiles):
        if 100 - share not in config.percentiles:
            continue
        one, other = kept[index], removed[config.percentiles.index(100 - share)]
        gaps = one * 1.0 - other
        bounds = intervals.of_seeds(gaps.mean(1), intervals.shared_variance(gaps.T) / gaps.shape[1])
        row = {"pixels_kept": share, "keeping": one.mean(), "removing_the_rest": other.mean()}
        yield row | with_interval("difference", (gaps.mean(), *bounds))


def claim(config: RetrainingConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """Scores lie above Random's at all, then the sign of their correlation with strength.

    The first is not asked where all seeds share Random's retrainings: another draw may differ.
    """
    asked, areas = (
        config.attributions if benchmarks.has_own_random(config, arrays) else (),
        benchmarks.areas_of(config, arrays),
    )
    kinds = [*kinds_of(specs_of(config))]
    for benchmark, attribution in itertools.product((ROAR, KAR), asked):
        own = [areas(kind, benchmark, attribution) for kind in kinds]
        values = np.array([[one.mean(), *faithfulness.bounds(one)] for one in own])
        above, below = int(np.sum(values[:, 1] > 0)), int(np.sum(values[:, 2] < 0))
        text = f"{benchmark.upper()}: the score of every kind of network lies above Random's (our test)"
        what = f"{config.retraining_seeds} retrainings of each, {own[0].shape[1]} images; each kind by itself"
        over = claims.Over(config.network_seeds, what)
        ours = f"{values[:, 0].min():.3f} to {values[:, 0].max():.3f}; {above} of {len(kinds)} above, {below} below"
        least = values[np.argmin(values[:, 1])]
        judged = claims.Steps(values[:, 1], values[:, 2])
        claimed = claims.Claim("3.2", text, attribution.replace("_", " "), "-", over)
        yield claims.row(claimed, ours, float(least[1]), float(least[2]), judged)
    yield from correlations.claims_of("3.2", tables["correlations"], "training strength")


def draw(workdir: Path, config: RetrainingConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Accuracy against percentile, of the standard and the strongest networks; scores against strength."""
    del arrays
    strongest = {(spec.norm, spec.loss): spec.kind for spec in specs_of(config)}.values()
    colours = figures.palette([spec.kind for spec in specs_of(config)])
    for benchmark in (ROAR, KAR):
        panels: dict[str, Any] = {}
        for attribution in config.attributions:
            curves = {}
            for row in tables["rows"]:
                kind = row["attribution"]
                wanted = row["benchmark"] == benchmark and kind in (attribution, RANDOM) and not row["network_seed"]
                if wanted and row["network"] in strongest:
                    name = "random" if kind == RANDOM else row["network"]
                    curves[name] = (row["percentiles"], row["curve"], row["curve_std"])
            panels[attribution.replace("_", " ")] = curves
        verb = "kept" if benchmark == KAR else "removed"
        label = f"% of pixels {verb}"
        figures.curve_figure(workdir / f"{benchmark}_curves.svg", panels, label, "test accuracy", colours)
    label = "training epsilon over the largest"
    correlations.draw(workdir, config, tables["rows"], tables["correlations"], "strength", label)


EXPERIMENT = experiment.Experiment(
    name="roar_kar",
    title="3.2 How faithful gradients are: ROAR and KAR",
    question="Do gradients become more faithful attributions with adversarial training? ROAR removes the pixels "
    "ranked highest and retrains, KAR keeps only them; the score is the area against pixels drawn at random, above "
    "zero where an attribution knows more than chance.",
    config=RetrainingConfig,
    measure=benchmarks.measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns=benchmarks.COLUMNS,
    others={
        "correlations": ("Correlations of scores with training strength", correlations.COLUMNS),
        "audit": (
            "Random twice: keeping a share of pixels, and removing the rest, are the same experiment",
            ("pixels_kept", "keeping", "removing_the_rest", "difference"),
        ),
        "notes": evaluation.NOTES,
    },
    captions={
        "roar_strength_*.svg": "ROAR scores against training strength ({} training); in the paper all lines rise. "
        "Points are averages over seeds; correlations are each seed's own, averaged.",
        "kar_strength_*.svg": "KAR scores against training strength ({} training); in the paper lines rise but for "
        "Gradient with l2 training.",
        "roar_curves.svg": "Accuracy after removing pixels: the faster it falls below Random's curve, the more "
        "faithful the attribution.",
        "kar_curves.svg": "Accuracy after keeping pixels only: the farther above Random's curve, the more faithful.",
    },
    paper_datasets=("cifar10",),
    takes="seven minutes",
    picture="roar_strength_xent.svg",
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
