"""ROAR and KAR of a run's networks: which retrainings, carried out, and read back."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from experiments.harness import launch
from experiments.harness.measurement import evaluation
from experiments.harness.pages.tables import Row, with_interval
from experiments.harness.settings.config import EvaluatedConfig, setting, subsets
from experiments.harness.training import retraining, stages
from experiments.harness.training.specs import Spec, kinds_of, specs_of
from experiments.harness.training.stages import Run
from robgrad import data, faithfulness, gradients, runs
from robgrad.faithfulness import KAR, RANDOM, ROAR, Retraining

Arrays = dict[str, np.ndarray]


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

    @property
    def trained_radii(self) -> Mapping[str, Sequence[float]]:
        """The radii, thinned."""
        return {norm: thinned(radii, self.epsilons) for norm, radii in self.radii.items()}


def thinned(radii: Sequence[float], count: int) -> tuple[float, ...]:
    """Some of the radii, evenly spread down from the largest."""
    ordered = sorted(radii)
    count = min(count, len(ordered))
    return tuple(ordered[round(len(ordered) * (index + 1) / count) - 1] for index in range(count))


def grid_of(config: RetrainingConfig, with_random: bool) -> list[Retraining]:
    """The retrainings of a network; Random, which no network matters to, goes with each seed's standard network."""
    methods = (*config.attributions, *([RANDOM] if with_random else []))
    return faithfulness.grid(methods, config.percentiles, config.retraining_seeds)


def methods_of(config: RetrainingConfig) -> dict[str, gradients.Attribution]:
    """The attributions of a run by name."""
    return {name: gradients.ATTRIBUTIONS[name] for name in config.attributions}


def measure(run: Run) -> Arrays:
    """Whether each network is right on each test image, and each retrained one `[retraining, image]`, with its name."""
    config, splits = run.config, subsets(run.config, run.dataset)
    trained = stages.train_networks(run, specs_of(config), splits[0])
    key = stages.key_of(config.seed, "roar_kar")
    accuracies = evaluation.hits_of(run, trained, splits[1], key)
    return accuracies | retrained_of(run, trained, splits, methods_of(config))


def retrained_of(
    run: Run,
    trained: runs.Classifiers,
    splits: Sequence[data.Split],
    methods: Mapping[str, gradients.Attribution],
) -> Arrays:
    """The hits of all retrainings of some networks and attributions, with their names."""
    config, specs = run.config, specs_of(run.config)
    size, pixels = retraining.kept_stack_size(run, trained.network), math.prod(run.image_shape[:2])
    images = sum(len(split.labels) for split in splits)
    maps = (len(config.attributions) + config.retraining_seeds) * pixels * (1 if pixels <= 256 else 2) * images
    said = (
        f"{retrainings_of(config)} retrainings of {len(specs)} networks, at most {size} in a stack; "
        f"rank maps of a network: {maps / 2**20:.0f} MiB"
    )
    if run.meter is None:
        launch.show(said)
    tools = retraining.tools_of(config, trained.network, splits[0], size, methods)
    hits: dict[str, np.ndarray] = {}
    for index, spec in enumerate(specs):
        grid, own = grid_of(config, spec.norm is None), trained.at(index)
        occluded = partial(retraining.occluded_examples, run, spec.name, own, tools, grid, splits)
        own_hits = retraining.hits_of(run, spec.name, grid, tools, occluded, spec.seed)
        hits |= {f"{spec.name}: {name}": right for name, right in own_hits.items()}
    return {"retrainings": np.array(list(hits)), "retrained_hits": np.stack(list(hits.values()))}


def retrainings_of(config: RetrainingConfig) -> int:
    """How many retrainings the benchmarks of the networks are."""
    return sum(len(grid_of(config, spec.norm is None)) for spec in specs_of(config))


def hits_of(config: RetrainingConfig, arrays: Arrays) -> Callable[[Spec, str, str], np.ndarray]:
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


def has_own_random(config: RetrainingConfig, arrays: Arrays) -> bool:
    """Whether every network seed has retrainings on Random of its own; in older records all share the first's."""
    last = Retraining(ROAR, RANDOM, config.percentiles[0], 0)
    return f"{Spec(seed=config.network_seeds - 1).name}: {retraining.named(last)}" in arrays["retrainings"].tolist()


def areas_of(config: RetrainingConfig, arrays: Arrays) -> Callable[[str, str, str], np.ndarray]:
    """By kind of network, benchmark and attribution what each test image brings to the score, `[seed, image]`.

    Seeds are the networks', whose retrainings are averaged; where networks have one seed, they are the retrainings.
    """
    hits, specs = hits_of(config, arrays), specs_of(config)
    places = kinds_of(specs)

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


def rows_of(config: RetrainingConfig, arrays: Arrays) -> list[Row]:
    """A row for each network, benchmark and attribution; Random's, of the first seed, with the standard network's."""
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
                    **with_interval("score", (curve.score, curve.low, curve.high)),
                }
            )
    return rows


COLUMNS = {
    "network": "network",
    "network_seed": "seed",
    **{name: evaluation.COLUMNS[name] for name in ("test_accuracy", "robust_accuracy", "auto_attack")},
    "benchmark": "benchmark",
    "attribution": "attribution",
    "score": "score",
}
