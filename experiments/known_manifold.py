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

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import agreement, alignment, estimates, evaluation
from experiments.harness.measurement.agreement import EXACT
from experiments.harness.measurement.alignment import AnalysedConfig, fields_of
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, with_interval
from experiments.harness.settings.config import setting, subsets
from experiments.harness.training import stages
from experiments.harness.training.specs import Spec, groups_of, kinds_of, specs_of
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import data, gradients, intervals, manifolds, networks, runs


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
    standard = stages.train_networks(base, [Spec()], train).logits_fn("standard")
    decoder = stages.fit_manifold(base, "vae-gan", train)["decoder"]
    made = runs.decoded(below.name, decoder, standard, run.image_shape, config.train_examples, config.test_examples)
    return run._replace(config=replace(config, dataset=made.name, held_out=0), dataset=made, source=None)


def measure(run: Run) -> experiment.Arrays:
    """Fractions and distances against the exact manifold and every estimate, of each image and network."""
    run = known(run)
    run = run._replace(config=with_exact(run.config))
    config = run.config
    train, test = subsets(config, run.dataset)
    trained = stages.train_networks(run, specs_of(config), train)
    keys = jax.random.split(stages.key_of(config.seed, "known_manifold"), 3)
    arrays, measured = estimates.fitted(run, train, test, keys[0])
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
                "untrained": evaluation.untrained(arrays, members),
                **with_interval("tangent_fraction", fraction),
                "root_fraction": np.nanmean(np.sqrt(truth["tangent_fraction"][members])),
                "fraction_same_class": np.nanmean(truth["fraction_same_class"][members]),
                "fraction_elsewhere": np.nanmean(truth["fraction_elsewhere"][members]),
                "covariance_chance": np.mean(truth["covariance_chance"]),
                "chance": np.mean(truth["chance"]),
                **{
                    f"by_{name}": np.nanmean(fields_of(arrays, loss, name)["tangent_fraction"][members])
                    for name in agreement.estimates_of(config)
                },
                "attacked_distance": np.median(truth["attacked_distance"][members]),
                "off_over_on": np.median(arrays["off"][members] / np.maximum(arrays["on"][members], 1e-12)),
                "image_alignment": np.nanmedian(arrays["image_alignment"][members]),
            }
        )
    judged = [agreement.row_of(config, arrays, specs, name) for name in agreement.estimates_of(config)]
    return {
        "rows": rows,
        "estimates": judged,
        "manifolds": estimates.rows_of_manifolds(with_exact(config), arrays),
    }


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
    yield from agreement.claim(config, tables["estimates"], images, len(places))


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
    for name, row in zip(agreement.estimates_of(config), tables["estimates"], strict=True):
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
    takes="six minutes",
    picture="true_fraction.svg",
    dataset="shapes-16",
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
