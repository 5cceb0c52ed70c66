r"""Where the manifold is known: does training raise the true share of gradients along it, and which estimate sees it.

On a data set that was generated from codes the tangent space at each image is exact. Standard and robust networks are
trained there, and the true share of their loss gradients along the manifold is set against that by each estimate of it.

    python -m experiments.known_manifold                      # rendered shapes, minutes on 2 cores
    python -m experiments.known_manifold --dataset=digits     # digits as a VAE-GAN makes them
    python -m experiments.known_manifold --dataset=generated:runs/manifold_distance-mnist-quick

On a set whose manifold is not known, the run first trains a VAE-GAN and a standard network, and goes on with what the
one generates and the other labels (Bordt et al., 2022, did so for MNIST: mean roots of the fraction 0.0962 for a random
direction, 0.3118 for a standard and 0.6754 for a robust network, with another generator).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from scipy import stats

from experiments.harness import costs, experiment, running
from experiments.harness.measurement import alignment, estimates, evaluation
from experiments.harness.measurement.alignment import AnalysedConfig, fields_of
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of, with_interval
from experiments.harness.settings.config import setting, subsets
from experiments.harness.settings.options import Options
from experiments.harness.training import stages
from experiments.harness.training.specs import Spec, groups_of, kinds_of, specs_of
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import data, gradients, intervals, manifolds, networks, runs

EXACT = "exact"
# Accuracy below which a network is said not to have trained.
UNTRAINED = 0.3


@dataclass(frozen=True, kw_only=True)
class KnownConfig(AnalysedConfig):
    """Networks and estimates on a set whose manifold is known, and sensitivity along and across it."""

    sensitivity_radius: float = setting("Length of the noise along and across the manifold, in pixel units.", 0.5)
    sensitivity_samples: int = setting("Draws of that noise, of each.", 20)


def known(run: Run) -> Run:
    """The run on a set whose manifold is known: its own, or what its generator makes of it."""
    if run.dataset.truth is not None:
        return run
    config, below = run.config, run.workdir / "generator"
    base = run._replace(workdir=below, config=replace(config, manifold=("vae-gan",)))
    train, _ = subsets(config, run.dataset)
    stages.train_networks(base, [Spec()], train)
    stages.fit_manifold(base, "vae-gan", train)
    made = runs.generated(below, config.train_examples, config.test_examples)
    return Run(run.workdir, replace(config, dataset=made.name, held_out=0), run.options, made)


def measure(run: Run) -> experiment.Arrays:
    """Fractions and distances against the exact manifold and every estimate, of each image and network."""
    run = known(run)
    run = run._replace(config=with_exact(run.config))
    config = run.config
    train, test = subsets(config, run.dataset)
    trained = stages.train_networks(run, specs_of(config), train)
    arrays = estimates.fitted(run, train)
    keys = jax.random.split(stages.key_of(config.seed, "known_manifold"), 3)
    measured = estimates.described(run, arrays, train, test, keys[0])
    measured["clean_hits"] = evaluation.hits(run, trained, test, keys[1])
    measured |= sensitivities(run, trained, arrays[EXACT], test, keys[1])
    return measured | alignment.measured(run, trained, arrays, train, test, keys[2])


def sensitivities(run: Run, trained: runs.Classifiers, bank, test: data.Split, key) -> experiment.Arrays:
    """Change of each network's softmax under noise along and across the exact manifold; and Etmann's alignment."""
    config, shape = run.config, run.image_shape

    def of_image(shared, variables, example):
        key, pixels = example
        image, own = data.scale(pixels), networks.logits_fn(trained.network, variables)
        tangent = estimates.surface_of(config, EXACT, shape, shared).tangent_space(image)
        radius, samples = config.sensitivity_radius, config.sensitivity_samples
        found = gradients.sensitivity(key, own, image, tangent, radius, samples=samples)
        return {"on": found.on, "off": found.off, "image_alignment": gradients.image_alignment(own, image)}

    keys = jax.random.split(key, len(test.labels))
    return stages.per_example(run, trained, of_image, (keys, test.images), bank)


def with_exact(config: KnownConfig) -> KnownConfig:
    """The configuration with the exact manifold among the others, last."""
    return replace(config, manifold=(*(name for name in config.manifold if name != EXACT), EXACT))


def estimates_of(config: KnownConfig) -> list[str]:
    """The manifolds that are estimates."""
    return [name for name in config.manifold if name not in (EXACT, "all")]


def tabulate(config: KnownConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """One row a kind of network; one an estimate; one a manifold."""
    specs, rows = specs_of(config), []
    (loss,) = config.analysis_losses[:1]
    for members in kinds_of(specs).values():
        truth = fields_of(arrays, loss, EXACT)
        fraction = intervals.of_seeds_and_rows(truth["tangent_fraction"][members], intervals.mean)
        rows.append(
            {
                **specs[members[0]].row,
                "network_seeds": len(members),
                "test_accuracy": np.mean(arrays["clean_hits"][members]),
                "untrained": int(np.sum(arrays["clean_hits"][members].mean(1) < UNTRAINED)),
                **with_interval("tangent_fraction", fraction),
                "root_fraction": np.nanmean(np.sqrt(truth["tangent_fraction"][members])),
                "fraction_same_class": np.nanmean(truth["fraction_same_class"][members]),
                "fraction_elsewhere": np.nanmean(truth["fraction_elsewhere"][members]),
                "covariance_chance": np.mean(truth["covariance_chance"]),
                "chance": np.mean(truth["chance"]),
                **{
                    f"by_{name}": np.nanmean(fields_of(arrays, loss, name)["tangent_fraction"][members])
                    for name in estimates_of(config)
                },
                "attacked_distance": np.median(truth["attacked_distance"][members]),
                "off_over_on": np.median(arrays["off"][members] / np.maximum(arrays["on"][members], 1e-12)),
                "image_alignment": np.nanmedian(arrays["image_alignment"][members]),
            }
        )
    judged = [_of_estimate(config, arrays, specs, name) for name in estimates_of(config)]
    return {
        "rows": rows,
        "estimates": judged,
        "manifolds": estimates.rows_of_manifolds(with_exact(config), arrays),
    }


def _of_estimate(config: KnownConfig, arrays: experiment.Arrays, specs: Sequence[Spec], name: str) -> Row:
    """How an estimate's fractions and tangent spaces compare with the true ones."""
    by_image, by_network = correlations(config, arrays, specs, name)
    pairs = _pairs(config, arrays, specs, name)
    bias = intervals.of_seeds_and_rows(
        np.diff(pairs[..., ::-1])[..., 0], lambda some: intervals.mean(np.moveaxis(intervals.mean(some), -1, 0))
    )
    angles = principal_angles(arrays[f"{name}/products"])
    return {
        "estimate": manifolds.KINDS[name].title,
        **with_interval("bias", bias),
        **with_interval("rank_over_images", by_image),
        **with_interval("rank_over_networks", by_network[:3]),
        "rank_over_networks_share": by_network.share,
        "shared": np.mean(np.cos(angles) ** 2),
        "smallest_angle": np.degrees(np.median(angles.min(axis=1))),
        "median_angle": np.degrees(np.median(angles)),
    }


def principal_angles(products: np.ndarray) -> np.ndarray:
    """Angles between two subspaces (Björck and Golub, 1973) from products `[N, k, z]` of their orthonormal bases.

    `[N, z]`, from small to large; a right angle for each dimension of the second that the first is short of.
    """
    cosines = np.linalg.svd(products.astype(np.float64), compute_uv=False)
    missing = products.shape[2] - cosines.shape[1]
    return np.arccos(np.clip(np.pad(cosines, ((0, 0), (0, max(missing, 0)))), 0, 1))


def _pairs(config: KnownConfig, arrays: experiment.Arrays, specs: Sequence[Spec], name: str) -> np.ndarray:
    """An estimate's fractions and the true ones, `[seed, image, kind of network, 2]`."""
    loss, places = config.analysis_losses[0], np.array([*kinds_of(specs).values()]).T
    both = (fields_of(arrays, loss, one)["tangent_fraction"][places] for one in (name, EXACT))
    return np.stack([*both], axis=-1).swapaxes(1, 2)


def _rank_correlation(pairs: np.ndarray) -> np.ndarray:
    """Spearman's correlation of `[n, ..., 2]` over the first axis, of pairs that are finite.

    NaN where one side is constant or fewer than two are finite.
    """
    kept = np.where(np.isfinite(pairs).all(-1, keepdims=True), pairs, np.nan)
    ranks = stats.rankdata(kept, axis=0, nan_policy="omit")
    ranks = np.nan_to_num(ranks - intervals.mean(ranks))
    squares = (ranks**2).sum(0).prod(-1)
    out = np.full(squares.shape, np.nan)
    return np.divide(ranks.prod(-1).sum(0), np.sqrt(squares), out=out, where=squares > 0)


def correlations(config: KnownConfig, arrays: experiment.Arrays, specs: Sequence[Spec], name: str):
    """An estimate's rank correlations with the truth, each with its interval.

    Over images within a network, averaged over networks; over kinds of networks of one seed; both judged by seeds.
    """
    pairs = _pairs(config, arrays, specs, name)

    def within(some: np.ndarray) -> np.ndarray:
        return intervals.mean(np.moveaxis(_rank_correlation(some), -1, 0))

    means = np.nanmean(pairs, axis=1)
    each = [float(_rank_correlation(one)) for one in means]
    alike = intervals.likeness(means[..., 1], means[..., 0], rank=True)
    by_network = intervals.of_correlations(each, means.shape[1], True, alike)
    return tuple(map(float, intervals.of_seeds_and_rows(pairs, within))), by_network


def claim(config: KnownConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """What is true of the gradients, and which estimate says so."""
    specs, loss = specs_of(config), config.analysis_losses[0]
    places, truth = kinds_of(specs), fields_of(arrays, loss, EXACT)
    images = truth["tangent_fraction"].shape[1]
    over = claims.Over(config.network_seeds, f"{images} images")
    for pair, kinds in groups_of(specs).items():
        group = ", ".join(pair)
        mine = np.stack([truth["tangent_fraction"][places[kind]] for kind in kinds], axis=2)
        text = "true share of the loss gradient along the manifold rises with strength"
        yield claims.ordered(claims.Claim("2.1", text, group, "-", over), mine, intervals.mean, rises=True)
        there = np.stack([truth["fraction_same_class"][places[kind]] for kind in kinds], axis=2)
        text = "the rise is local: it is larger at the image itself than by another image of its class"
        both = np.concatenate([mine, there], axis=2)
        value, low, high = intervals.of_seeds_and_rows(both, _difference_of_rises)
        ours = f"{float(value):.3g}"
        yield claims.row(
            claims.Claim("2.1", text, group, "-", over), ours, float(low), float(high), claims.Steps(low, high)
        )
        distances = np.stack([truth["attacked_distance"][places[kind]] for kind in kinds], axis=2)
        text = "median true distance of attacked images to the manifold falls with strength"
        yield claims.ordered(claims.Claim("2.1", text, group, "-", over), distances, intervals.median)
    for row in tables["estimates"]:
        for name, what, of in (("images", "images of one network", f"{images} images"), ("networks", "networks", "")):
            text = f"an estimate of the manifold ranks {what} as the truth does"
            value, low, high = interval_of(row, f"rank_over_{name}")
            spread = claims.Over(config.network_seeds, of or f"{len(places)} kinds of network")
            one = claims.Claim("2.1", text, row["estimate"], "-", spread)
            ours = f"rank correlation {value:.3g}"
            steps = claims.Steps(low, high)
            if name == "networks":
                steps = claims.Steps.of_correlation(
                    intervals.Correlation(value, low, high, row[f"rank_over_{name}_share"])
                )
            yield claims.row(one, ours, low, high, steps) if np.isfinite(low) else claims.untested(one)


def _difference_of_rises(values: np.ndarray) -> np.ndarray:
    """From first to last network, at the image and by another image; `[image, ..., both]`."""
    here, there = np.split(intervals.mean(values), 2, axis=-1)
    return (here[..., -1] - here[..., 0]) - (there[..., -1] - there[..., 0])


def draw(workdir: Path, config: KnownConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """True fractions with baselines, estimates against the truth, gradients, projections."""
    rows, loss = tables["rows"], config.analysis_losses[0]
    members = kinds_of(specs_of(config))
    named = {"tangent_fraction_chance": "chance", "tangent_fraction_covariance": "covariance_chance"}
    every = [row | {name: row[field] for name, field in named.items()} for row in rows]
    alignment.draw_fractions(
        workdir / "true_fraction.svg", every, "along the exact manifold", figures.palette([*members])
    )
    label = "true share of the loss gradient along the manifold"
    against = {}
    for name, row in zip(estimates_of(config), tables["estimates"], strict=True):
        xs, ys = (np.array([one[field] for one in rows]) for field in ("tangent_fraction", f"by_{name}"))
        against[f"{row['estimate']} ({row['rank_over_networks']:.2f})"] = (xs, ys)
    ylabel = "the same by an estimate"
    figures.scatter_figure(workdir / "estimates.svg", against, label, ylabel, legend="rank correlation over networks")
    images = arrays["shown/test"]
    slopes = {kind: arrays[f"shown/{loss}/gradient"][of[0]] for kind, of in members.items()}
    figures.image_grid(workdir / "loss_gradients.svg", {"test image": images}, slopes)
    figures.image_grid(
        workdir / "manifold.svg",
        {"test image": images, **estimates.rows_of_pictures(with_exact(config), arrays)},
    )


def estimated(config: KnownConfig, dataset: data.Dataset, options: Options, others: Sequence) -> Iterator[Row]:
    """Networks, manifolds and analysis on the known set; where there is none yet, as on the set it is made from."""
    train, _ = subsets(config, dataset)
    # On a generated set they are trained anew.
    shared = others if dataset.truth is not None else ()
    yield from costs.classifiers(config, costs.missing(config, shared), dataset, train, options)
    yield from alignment.estimated(config, dataset, options, len(specs_of(config)))


EXPERIMENT = experiment.Experiment(
    name="known_manifold",
    title="2.1 Where the manifold is known",
    question="On images made from codes the manifold is known. Does adversarial training raise the true share of the "
    "loss gradient along it, and which estimate of the manifold would have told?",
    config=KnownConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "test_accuracy": "test accuracy",
        "untrained": "seeds not trained",
        "tangent_fraction": "true fraction",
        "root_fraction": "its root",
        "fraction_same_class": "by another image's tangent space, same class",
        "fraction_elsewhere": "any class",
        "covariance_chance": "direction with the data's covariance",
        "chance": "random direction",
        **{f"by_{name}": f"by {kind.title}" for name, kind in manifolds.KINDS.items() if name != EXACT},
        "attacked_distance": "median true distance, attacked",
        "off_over_on": "sensitivity across, over that along",
        "image_alignment": "image alignment",
    },
    others={
        "estimates": (
            "The estimates: bias of the fraction; rank correlation with the true one over images of a network and over "
            "networks; share of the true tangent space in the estimate's, and principal angles in degrees",
            (
                *("estimate", "bias", "rank_over_images", "rank_over_networks"),
                *("shared", "smallest_angle", "median_angle"),
            ),
        ),
        "manifolds": estimates.MANIFOLDS,
    },
    captions={
        "true_fraction.svg": "Share of the loss gradient along the exact manifold; it should grow with epsilon, and "
        "more so in the image's own tangent space than in another image's.",
        "estimates.svg": "The same share by each estimate against the true one, one point a kind of network; a good "
        "estimate rises with the truth, whatever its level.",
        "loss_gradients.svg": "Test images, and gradients of the negative loss at the predicted label.",
        "manifold.svg": "Projections on each manifold, and samples of those that have them.",
    },
    estimate=estimated,
    takes="six minutes",
    picture="true_fraction.svg",
    dataset="shapes-16",
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
