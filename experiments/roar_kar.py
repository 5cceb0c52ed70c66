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
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import costs, experiment, launch
from experiments.harness.measurement import evaluation
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row
from experiments.harness.settings.config import EvaluatedConfig, setting, subsets
from experiments.harness.settings.options import Options
from experiments.harness.training import retraining, stages
from experiments.harness.training.stages import Run, Spec
from experiments.harness.verdicts import claims, correlations
from robgrad import data, faithfulness, gradients, intervals, stacking
from robgrad.faithfulness import KAR, RANDOM, ROAR, Retraining


@dataclass(frozen=True, kw_only=True)
class RetrainingConfig(EvaluatedConfig):
    """Sections 3.2 and 3.3: the retrainings too."""

    epsilons: int = setting("How many of each norm's radii are used, evenly thinned down from the largest.", 20)
    attributions: tuple[str, ...] = setting(
        "Attributions whose faithfulness is measured.",
        ("gradient", "gradient_times_input"),
        choices=lambda: tuple(gradients.ATTRIBUTIONS),
    )
    percentiles: tuple[float, ...] = setting(
        "Shares of pixels that ROAR removes and KAR keeps, in percent.", faithfulness.PERCENTILES, most=100.0
    )
    retraining_seeds: int = setting("Retrainings of each attribution, percentile and benchmark.", 3)
    retraining_epochs: int = setting("Epochs of each retraining.")
    retraining_batch_size: int = setting("Batch of each retraining.", 100)
    random_ranking: bool = setting(
        "Random ranks the pixels at random instead of tossing a coin for each, as the paper.", False
    )
    own_mean: bool = setting("Fill with each image's own mean colour instead of the data set's.", False)


def thinned(radii: Sequence[float], count: int) -> tuple[float, ...]:
    """Some of the radii, evenly spread down from the largest."""
    ordered = sorted(radii)
    count = min(count, len(ordered))
    return tuple(ordered[round(len(ordered) * (index + 1) / count) - 1] for index in range(count))


def specs_of(config: RetrainingConfig) -> list[Spec]:
    """The networks, their radii thinned."""
    kept = {norm: thinned(radii, config.epsilons) for norm, radii in config.radii.items()}
    return [one for one in stages.specs_of(config) if one.norm is None or one.epsilon in kept[one.norm]]


def grid_of(config: RetrainingConfig, with_random: bool) -> list[Retraining]:
    """The retrainings of a network; Random, which no network matters to, goes with each seed's standard network."""
    methods = (*config.attributions, *([RANDOM] if with_random else []))
    return faithfulness.grid(methods, config.percentiles, config.retraining_seeds)


def methods_of(config: RetrainingConfig) -> dict[str, gradients.Attribution]:
    """The attributions of a run by name."""
    return {name: gradients.ATTRIBUTIONS[name] for name in config.attributions}


def measure(run: Run) -> experiment.Arrays:
    """Whether each network is right on each test image, and each retrained one `[retraining, image]`, with its name."""
    config, splits = run.config, subsets(run.config, run.dataset)
    specs, network = specs_of(config), stages.network_of(config, run.dataset)
    variables = stages.train_networks(run, specs, splits[0])
    key = stages.key_of(config.seed, "roar_kar")
    accuracies = evaluation.hits_of(run, specs, variables, splits[1], key)
    return accuracies | retrained_of(run, specs, network, variables, splits, methods_of(config))


def retrained_of(run: Run, specs, network, variables, splits, methods) -> experiment.Arrays:
    """The hits of all retrainings of some networks and attributions, with their names."""
    config = run.config
    size, pixels = retraining.kept_stack_size(run, network), math.prod(run.image_shape[:2])
    images = sum(len(split.labels) for split in splits)
    maps = (len(config.attributions) + config.retraining_seeds) * pixels * (1 if pixels <= 256 else 2) * images
    launch.show(
        f"{retrainings_of(config)} retrainings of {len(specs)} networks, at most {size} in a stack; "
        f"rank maps of a network: {maps / 2**20:.0f} MiB"
    )
    tools = retraining.tools_of(config, network, splits[0], size, methods)
    hits: dict[str, np.ndarray] = {}
    for index, spec in enumerate(specs):
        grid, own = grid_of(config, spec.norm is None), stacking.replica(variables, index)
        occluded = partial(retraining.occluded_examples, config, spec.name, own, tools, grid, splits)
        own_hits = retraining.hits_of(run, spec.name, grid, tools, occluded, spec.seed)
        hits |= {f"{spec.name}: {name}": right for name, right in own_hits.items()}
    return {"retrainings": np.array(list(hits)), "retrained_hits": np.stack(list(hits.values()))}


def retrainings_of(config: RetrainingConfig) -> int:
    """How many retrainings the benchmarks of the networks are."""
    return sum(len(grid_of(config, spec.norm is None)) for spec in specs_of(config))


def hits_of(config: RetrainingConfig, arrays: experiment.Arrays) -> Callable[[Spec, str, str], np.ndarray]:
    """The retrained networks' hits `[percentile, retraining, image]` by network, benchmark and method.

    Random's are those of the network's seed.
    """
    by_name = dict(zip(arrays["retrainings"].tolist(), arrays["retrained_hits"], strict=True))
    own = has_own_random(config, arrays)

    def hits(spec: Spec, benchmark: str, method: str) -> np.ndarray:
        seeds = range(config.retraining_seeds)
        source = Spec(seed=spec.seed if own else 0) if method == RANDOM else spec
        named = lambda q, seed: retraining.named(Retraining(benchmark, method, q, seed))  # noqa: E731
        return np.array([[by_name[f"{source.name}: {named(q, s)}"] for s in seeds] for q in config.percentiles])

    return hits


def has_own_random(config: RetrainingConfig, arrays: experiment.Arrays) -> bool:
    """Whether every network seed has retrainings on Random of its own; in older records all share the first's."""
    last = Retraining(ROAR, RANDOM, config.percentiles[0], 0)
    return f"{Spec(seed=config.network_seeds - 1).name}: {retraining.named(last)}" in arrays["retrainings"].tolist()


def areas_of(config: RetrainingConfig, arrays: experiment.Arrays) -> Callable[[str, str, str], np.ndarray]:
    """By kind of network, benchmark and attribution what each test image brings to the score, `[seed, image]`.

    Seeds are the networks', whose retrainings are averaged; where networks have one seed, they are the retrainings.
    """
    hits, specs = hits_of(config, arrays), specs_of(config)
    places = stages.kinds_of(specs)

    def areas(kind: str, benchmark: str, method: str) -> np.ndarray:
        every = [
            faithfulness.areas(
                benchmark, config.percentiles, hits(spec, benchmark, method), hits(spec, benchmark, RANDOM)
            )
            for spec in (specs[place] for place in places[kind])
        ]
        return of_seeds(every)

    return areas


def of_seeds(every: Sequence[np.ndarray]) -> np.ndarray:
    """One array `[seed, image]` of networks' `[retraining, image]`: by networks, or of one network by retrainings."""
    return every[0] if len(every) == 1 else np.mean(every, axis=1)


def tabulate(config: RetrainingConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each network, benchmark and attribution; correlations with strength; an audit of Random."""
    hits, rows = hits_of(config, arrays), []
    for place, spec in enumerate(specs_of(config)):
        accuracies = evaluation.accuracies(config, arrays, [place])
        methods = (*config.attributions, *([RANDOM] if spec == Spec() else []))
        for benchmark, method in itertools.product((ROAR, KAR), methods):
            random = hits(spec, benchmark, RANDOM)
            curve = faithfulness.curve(benchmark, config.percentiles, hits(spec, benchmark, method), random)
            rows.append(
                {
                    **spec.row,
                    "network_seed": spec.seed,
                    **accuracies,
                    "benchmark": benchmark,
                    "attribution": method,
                    "percentiles": list(config.percentiles),
                    "curve": curve.mean.tolist(),
                    "curve_std": curve.std.tolist(),
                    "score": curve.score,
                    "score_low": curve.low,
                    "score_high": curve.high,
                }
            )
    seeds = range(config.network_seeds if has_own_random(config, arrays) else 1)
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
        low, high = intervals.of_seeds(gaps.mean(1), intervals.shared_variance(gaps.T) / gaps.shape[1])
        row = {"pixels_kept": share, "keeping": one.mean(), "removing_the_rest": other.mean()}
        yield row | {"difference": gaps.mean(), "difference_low": low, "difference_high": high}


def claim(config: RetrainingConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """Scores lie above Random's at all, then the sign of their correlation with strength.

    The first is not asked where all seeds share Random's retrainings: another draw may differ.
    """
    asked, areas = config.attributions if has_own_random(config, arrays) else (), areas_of(config, arrays)
    kinds = [*stages.kinds_of(specs_of(config))]
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


def estimated(config: RetrainingConfig, dataset: data.Dataset, options: Options, others: Sequence) -> Iterator[Row]:
    """The networks that other runs do not have, and the retrainings of all."""
    train, test = subsets(config, dataset)
    specs = set(specs_of(config))
    missing = [one for one in costs.missing(config, others) if one in specs]
    yield from costs.classifiers(config, missing, dataset, train, options)
    shape, network = dataset.train.images.shape[1:], stages.network_of(config, dataset)
    size = options.stack_size or retraining.stack_size(network, shape, config.retraining_batch_size)
    part = grid_of(config, with_random=False)[:size]
    # Nothing is attributed: ranks are made up below.
    tools = retraining.tools_of(config, network, train, len(part), {})
    plan = retraining.plan_of(config, "retraining", part, tools, shape)
    kind = np.uint8 if math.prod(shape[:2]) <= 256 else np.uint16
    maps = len(config.attributions) + config.retraining_seeds
    ranks = np.zeros((len(train.labels), maps, *shape[:2]), kind)
    examples = faithfulness.Examples(train.images, train.labels, ranks)
    row = costs.row_of(dataset.name, plan, examples, options, len(specs))
    count = retrainings_of(config)
    working = row["steps"] * row["ms_per_step"] / 60_000 * count / len(part)
    yield evaluation.estimated(config, dataset, test, "l2", len(specs))
    yield row | {"retrainings": count, "minutes": working + row["compile_seconds"] / 60}


EXPERIMENT = experiment.Experiment(
    name="roar_kar",
    title="3.2 How faithful gradients are: ROAR and KAR",
    question="Do gradients become more faithful attributions with adversarial training? ROAR removes the pixels "
    "ranked highest and retrains, KAR keeps only them; the score is the area against pixels drawn at random, above "
    "zero where an attribution knows more than chance.",
    config=RetrainingConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "network_seed": "seed",
        **{name: evaluation.COLUMNS[name] for name in ("test_accuracy", "robust_accuracy", "auto_attack")},
        "benchmark": "benchmark",
        "attribution": "attribution",
        "score": "score",
        "score_low": "95% from",
        "score_high": "to",
    },
    others={
        "correlations": ("Correlations of scores with training strength", correlations.COLUMNS),
        "audit": (
            "Random twice: keeping a share of pixels, and removing the rest, are the same experiment",
            ("pixels_kept", "keeping", "removing_the_rest", "difference", "difference_low", "difference_high"),
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
    estimate=estimated,
    paper_datasets=("cifar10",),
    takes="seven minutes",
    picture="roar_strength_xent.svg",
)

if __name__ == "__main__":
    experiment.main(EXPERIMENT, __doc__)
