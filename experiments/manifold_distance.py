r"""Section 2.1: adversarial training confines loss gradients to the image manifold.

Trains a standard and several adversarially trained networks and fits a manifold (the paper's VAE-GAN, or PCA),
attacks the test images, and measures how far the attacked images lie from the manifold and how much of each loss
gradient lies along it.

    python -m experiments.manifold_distance                                   # digits, minutes on 2 cores
    python -m experiments.manifold_distance --manifold=pca --network_seeds=3
    python -m experiments.manifold_distance --dataset=fashion_mnist --preset=quick
    python -m experiments.manifold_distance --dataset=mnist --preset=paper    # a large GPU

Expected: from the standard network over growing training epsilon the median distance falls and the
tangent fraction rises. Published modes of the rescaled distance (xent analysis, l2-xent networks):
MNIST 0.63 (standard), 0.60, 0.50, 0.42; Fashion-MNIST 0.62, 0.59, 0.53, 0.43; CIFAR-10 0.115, 0.112,
0.105, 0.094.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import analysed, claims, densities, estimate, evaluated, experiment, figures, presets, trained
from experiments.harness.config import EvaluatedConfig, setting, subsets
from experiments.harness.options import Options
from experiments.harness.tables import Row
from experiments.harness.trained import Recipe, Run
from robgrad import attacks, data, intervals, manifolds, networks, stacking

# Successful attacks below which no interval is given.
FEWEST = 20
# Modes of the rescaled distances, read off the figures (cross-entropy analysis, l2 networks trained on
# cross-entropy): test data, standard, and the networks of growing epsilon.
PUBLISHED_MODES = {
    "mnist": (0.33, 0.63, 0.60, 0.50, 0.42),
    "fashion_mnist": (0.20, 0.62, 0.59, 0.53, 0.43),
    "cifar10": (0.07, 0.115, 0.112, 0.105, 0.094),
}


@dataclass(frozen=True, kw_only=True)
class ManifoldConfig(EvaluatedConfig):
    """Section 2.1: the manifold and the analysis attack too."""

    manifold: str = setting("Estimate of the image manifold.", "vae-gan", choices=lambda: tuple(manifolds.KINDS))
    vae_gan_epochs: int = setting("Epochs of the VAE-GAN.")
    vae_gan_batch_size: int = setting("Batch of the VAE-GAN.", 100)
    vae_gan_learning_rate: float = setting("Learning rate of the three Adams of the VAE-GAN.", 5e-4)
    reconstruction_weight: float = setting("Weight lambda of the reconstruction in the decoder's loss.")
    discriminator_steps: int = setting("Discriminator steps a step of the VAE-GAN.", 1)
    pca_dimensions: int = setting("Dimensions of the PCA manifold.", 10)
    analysis_attack: str = setting("Analysis attack.", "pgd", choices=lambda: tuple(attacks.ATTACKS))
    analysis_epsilon: float = setting(
        "Radius of the l2 attack whose distance to the manifold is measured.", 12.0, zero=True
    )
    analysis_losses: tuple[str, ...] = setting(
        "Losses of the analysis attacks.", ("xent", "cw"), choices=lambda: tuple(attacks.LOSSES)
    )
    analysis_step_size: float = setting("Step of the analysis attack.", 2.0)
    analysis_steps: int = setting("Steps of the analysis attack.", 40)
    sampled_projection: bool = setting(
        "Sample the code when projecting instead of taking its mean, as the paper's code.", False
    )


_MNIST: dict[str, Any] = {"vae_gan_epochs": 30, "reconstruction_weight": 5e-3}
_FASHION: dict[str, Any] = {"vae_gan_epochs": 60, "reconstruction_weight": 5e-4}
_CIFAR: dict[str, Any] = {
    "vae_gan_epochs": 150,
    "vae_gan_learning_rate": 2e-4,
    "reconstruction_weight": 1e-2,
    "discriminator_steps": 5,
    # The decoder's Jacobian has 128 columns an image: fewer images at a time.
    "chunk": 10,
}
_QUICK: dict[str, Any] = {"vae_gan_epochs": 10, "vae_gan_batch_size": 50, "analysis_steps": 20}
PRESETS = presets.extended(
    presets.AUTO_ATTACK,
    presets.EVALUATION,
    {
        "paper": {"mnist": _MNIST, "fashion_mnist": _FASHION, "cifar10": _CIFAR},
        "quick": {
            "digits": _QUICK | {"vae_gan_epochs": 80, "reconstruction_weight": 5e-3, "analysis_epsilon": 6.0},
            # MNIST needs more training than Fashion-MNIST before few examples show the order, and wider strengths.
            "mnist": _MNIST
            | _QUICK
            | {
                "radii": {"l2": (0.5, 2.0, 4.0), "linf": (0.1, 0.2, 0.4)},
                "step_sizes": {"l2": 2.0, "linf": 0.2},
                "epochs": 4,
                "vae_gan_epochs": 16,
            },
            "fashion_mnist": _FASHION | _QUICK,
            "cifar10": _CIFAR | _QUICK | {"vae_gan_epochs": 1, "discriminator_steps": 1},
        },
    },
)


def measure(run: Run) -> experiment.Arrays:
    """Everything that tables, claims and figures need, by name; of each image and network where it says so."""
    config = run.config
    train, test = subsets(config, run.dataset)
    recipes = trained.recipes_of(config)
    network = trained.network_of(config, run.dataset)
    variables = trained.train_networks(run, recipes, train)
    arrays = trained.fit_manifold(run, config.manifold, train)
    keys = jax.random.split(trained.key_of(config.seed, "manifold_distance"), 3)
    measured = shown_of_manifold(config, run.image_shape, arrays, test, keys[0])
    measured |= evaluated.hits_of(run, recipes, variables, test, keys[1])
    for loss, fields in analysed.fields_of(run, network, variables, arrays, test, keys[2]).items():
        # The same for all networks.
        shared = {field: fields.pop(field)[0] for field in ("distance", "chance")}
        # A certain network's gradients are below what half precision can hold.
        pictures = {f"shown/{loss}/attacked": fields.pop("attacked").astype(np.float16)}
        pictures |= {f"shown/{loss}/gradient": fields.pop("gradient")}
        measured |= {f"{loss}/{field}": values for field, values in (fields | shared).items()} | pictures
    return measured


def shown_of_manifold(config: ManifoldConfig, image_shape, arrays, test: data.Split, key) -> experiment.Arrays:
    """Some test images, their projections, and images sampled from the manifold where it can."""
    kind = manifolds.KINDS[config.manifold]
    images = data.scale(jnp.asarray(test.images[: analysed.SHOWN]))
    surface = kind.manifold(image_shape, arrays, None)
    shown = {"shown/test": images, "shown/projected": jax.jit(jax.vmap(surface.project))(images)}
    if sample := kind.sample:
        keys = jax.random.split(key, 2 * analysed.SHOWN)
        shown["shown/samples"] = jax.jit(lambda keys: sample(image_shape, arrays, keys))(keys)
    return {name: np.asarray(values, np.float16) for name, values in shown.items()}


def fields_of(arrays: experiment.Arrays, loss: str) -> experiment.Arrays:
    """What was measured under one analysis loss, by field."""
    return {name.removeprefix(f"{loss}/"): values for name, values in arrays.items() if name.startswith(f"{loss}/")}


def tabulate(config: ManifoldConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """One row a kind of network and analysis loss: accuracies, distances and alignment, averaged over its seeds."""
    recipes, rows = trained.recipes_of(config), []
    for loss in config.analysis_losses:
        fields = fields_of(arrays, loss)
        for members in trained.kinds_of(recipes).values():
            own = {name: values[members] if values.ndim == 2 else values for name, values in fields.items()}
            rows.append(
                {
                    **recipes[members[0]].row,
                    "network_seeds": len(members),
                    "analysis_loss": loss,
                    **evaluated.accuracies(config, arrays, members),
                    **_of_kind(own),
                }
            )
    return {"rows": rows, "notes": evaluated.notes_of(recipes, "l2", arrays)}


def _of_kind(own: experiment.Arrays) -> Row:
    """What a row says of the distances and gradients of one kind of network, `[seed, image]`."""
    row: Row = {}
    clean = own["distance"]
    for prefix, success in (("", own["own"]), ("transfer_", own["transfer"])):
        kept = np.where(success, own["attacked_distance"], np.nan)
        modes = [densities.mode(rescaled(one[np.isfinite(one)], clean)) for one in kept]
        row |= {
            f"{prefix}attack_success": np.mean(success),
            **_bounded(f"{prefix}median_distance", kept, _median),
            f"{prefix}mean_distance": np.nanmean(kept) if success.any() else np.nan,
            f"{prefix}rescaled_mode": np.mean(modes),
        }
    fractions = own["tangent_fraction"]
    return row | {
        "clean_median_distance": np.median(clean),
        "clean_rescaled_mode": densities.mode(rescaled(clean, clean)),
        **_bounded("tangent_fraction", fractions, _mean),
        "tangent_fraction_chance": np.mean(own["chance"]),
        "gradient_norm": np.median(own["gradient_norm"]),
        "zero_gradients": int(np.sum(~np.isfinite(fractions))),
    }


def _bounded(name: str, values: np.ndarray, statistic) -> Row:
    """A statistic of `[seed, image]` and its interval; NaN where a seed has no value."""
    finite, names = np.isfinite(values).sum(axis=1), (name, f"{name}_low", f"{name}_high")
    if not finite.all():
        return dict.fromkeys(names, np.nan)
    if (finite < FEWEST).any():
        # A bootstrap of a few successes would be far too narrow.
        return dict.fromkeys(names, np.nan) | {name: np.mean([statistic(one) for one in values])}
    if len(values) == 1:
        values = values[:, np.isfinite(values[0])]
    return dict(zip(names, intervals.of_seeds_and_rows(values, statistic), strict=True))


def _median(values: np.ndarray) -> Any:
    return _quietly(np.nanmedian, values)


def _mean(values: np.ndarray) -> Any:
    return _quietly(np.nanmean, values)


def _quietly(statistic, values: np.ndarray) -> Any:
    """A statistic of each column; NaN, without a warning, of one in which a draw has left nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return statistic(values, axis=0)


def rescaled(distances: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Distances in units where the clean test data's own span [0, 1]."""
    return (distances - clean.min()) / np.ptp(clean)


def groups_of(recipes: Sequence[Recipe]) -> dict[tuple, list[str]]:
    """The kinds of network of each group that the paper has a panel for: the standard one, then a norm and loss's."""
    pairs = dict.fromkeys((one.norm, one.loss) for one in recipes if one.norm)
    kinds = {one.kind: (one.norm, one.loss) for one in recipes}
    return {pair: [kind for kind, of in kinds.items() if of in (pair, (None, None))] for pair in pairs}


def claim(config: ManifoldConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """The order of distances and tangent fractions in each group, and the published modes."""
    del tables
    recipes = trained.recipes_of(config)
    places = trained.kinds_of(recipes)
    for analysis_loss in config.analysis_losses:
        fields = fields_of(arrays, analysis_loss)
        clean = np.broadcast_to(fields["distance"], (config.network_seeds, len(fields["distance"])))
        for (norm, loss), kinds in groups_of(recipes).items():
            group, images = f"{norm}, {loss}; {analysis_loss} analysis", clean.shape[1]
            over = claims.spread(config.network_seeds, f"{images} images")
            kept = {
                kind: np.where(fields["own"][places[kind]], fields["attacked_distance"][places[kind]], np.nan)
                for kind in kinds
            }
            text = "median distance to the manifold falls with strength"
            columns = np.stack([*kept.values(), clean], axis=2)
            one = claims.Claim("2.1", text, group, "standard > ... > test data", over)
            yield claims.ordered(one, columns, _median)
            fractions = np.stack([fields["tangent_fraction"][places[kind]] for kind in kinds], axis=2)
            text = "share of the loss gradient along the manifold rises with strength (our measure)"
            yield claims.ordered(claims.Claim("2.1", text, group, "-", over), fractions, _mean, rises=True)
            if (norm, loss, analysis_loss) == ("l2", "xent", "xent"):
                yield from _modes(config, clean, kept)


def _modes(config: ManifoldConfig, clean: np.ndarray, kept: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """The published modes of the rescaled distances, where the radii are the paper's."""
    paper = PRESETS["paper"].get(config.dataset, {})
    if config.dataset not in PUBLISHED_MODES or config.radii["l2"] != paper["radii"]["l2"]:
        return
    modes, text = PUBLISHED_MODES[config.dataset], "mode of the rescaled distance"
    for (name, values), theirs in zip({"test data": clean, **kept}.items(), modes, strict=True):
        over = claims.spread(len(values), f"{values.shape[1]} images")
        one = claims.Claim("2.1", text, f"{name}; xent analysis", f"{theirs:g}", over)
        if (np.isfinite(values).sum(axis=1) < FEWEST).any():
            yield claims.untested(one)
            continue
        pairs = np.stack([clean, values], axis=2)
        ours, low, high = intervals.of_seeds_and_rows(pairs, _mode)
        judged = claims.number(theirs, modes, low, high, is_paper_size(config))
        yield claims.row(one, f"{ours:.3g}", float(low), float(high), judged)


def _mode(pairs: np.ndarray) -> float:
    clean, values = pairs.T
    return densities.mode(rescaled(values[np.isfinite(values)], clean))


def is_paper_size(config: ManifoldConfig) -> bool:
    """Whether a run has the paper's numbers throughout, whatever its seed, groups of networks and quirks."""
    paper = PRESETS["paper"].get(config.dataset)
    if paper is None:
        return False
    free = {"dataset", "preset", "seed", "matmul_precision", "chunk", "norms", "train_losses", "analysis_losses"}
    free |= {"robust_epsilon", "shuffle", "zero_mask", "sampled_projection", "network_seeds", "pca_dimensions", "radii"}
    fields = [field for field in dataclasses.fields(config) if field.name not in free]
    same_radii = config.radii["l2"] == paper["radii"]["l2"]
    return same_radii and all(getattr(config, field.name) == paper.get(field.name, field.default) for field in fields)


def draw(workdir: Path, config: ManifoldConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Of each analysis attack densities, attacked images, tangent fractions; loss gradients; the manifold."""
    recipes = trained.recipes_of(config)
    places, images = trained.kinds_of(recipes), arrays["shown/test"]
    for loss in config.analysis_losses:
        fields = fields_of(arrays, loss)
        clean, panels = fields["distance"], {}
        for (norm, train_loss), kinds in groups_of(recipes).items():
            curves = {"test data": rescaled(clean, clean)}
            for kind in kinds:
                own = fields["own"][places[kind]]
                curves[kind] = rescaled(fields["attacked_distance"][places[kind]][own], clean)
            panels[f"{norm}, {train_loss}"] = curves
        xlabel = f"distance to the manifold, rescaled ({loss} analysis)"
        figures.density_figure(workdir / f"densities_{loss}.png", panels, xlabel)
        shown = {kind: arrays[f"shown/{loss}/attacked"][members[0]] for kind, members in places.items()}
        figures.image_grid(workdir / f"attacked_{loss}.png", {"test image": images, **shown})
        rows = [row for row in tables["rows"] if row["analysis_loss"] == loss]
        figures.bar_figure(
            workdir / f"tangent_fraction_{loss}.png",
            [row["network"] for row in rows],
            [row["tangent_fraction"] for row in rows],
            ("random direction", rows[0]["tangent_fraction_chance"]),
            "fraction of the loss gradient's squared norm along the manifold",
        )
    first = arrays[f"shown/{config.analysis_losses[0]}/gradient"]
    slopes = {kind: first[members[0]] for kind, members in places.items()}
    figures.image_grid(workdir / "loss_gradients.png", {"test image": images}, slopes)
    rows_of_images = {"test image": images, "projection": arrays["shown/projected"]}
    if "shown/samples" in arrays:
        samples = arrays["shown/samples"]
        rows_of_images |= {"sample": samples[: analysed.SHOWN], "sample ": samples[analysed.SHOWN :]}
    figures.image_grid(workdir / "manifold.png", rows_of_images)


def estimated(config: ManifoldConfig, dataset: data.Dataset, options: Options, others: Sequence) -> Iterator[Row]:
    """Stacks of networks, the manifold, the analysis of all test images."""
    train, test = subsets(config, dataset)
    recipes, shape = trained.recipes_of(config), dataset.train.images.shape[1:]
    yield from estimate.classifiers(config, estimate.missing(config, others), dataset, train, options)
    kind = manifolds.KINDS[config.manifold]
    if kind.fit:
        arrays = kind.fit(train.images, trained.manifold_settings(config, config.manifold))
    else:
        plan = trained.manifold_plan(config, config.manifold, shape)
        # Copied, since measuring the plan gives its buffers away.
        arrays = jax.tree.map(jnp.copy, stacking.replica(plan.states.variables, 0))
        yield estimate.row_of(dataset.name, plan, train, options, 1)
    yield evaluated.estimated(config, dataset, test, "l2", len(recipes))
    spaces, each, compilation = _costs_of_a_chunk(config, dataset, test, arrays)
    chunks = len(test.labels) / min(config.chunk, len(test.labels))
    seconds = chunks * (spaces + each * len(recipes) * len(config.analysis_losses))
    yield {
        **estimate.empty(dataset.name, f"analysis of {len(test.labels)} images"),
        "networks": len(recipes),
        "compile_seconds": compilation,
        "minutes": (seconds + compilation) / 60,
    }


def _costs_of_a_chunk(config: ManifoldConfig, dataset, test, arrays) -> tuple[float, float, float]:
    """Seconds of one chunk of images: their tangent spaces, their analysis on one network; and of compiling both."""
    network, shape = trained.network_of(config, dataset), dataset.train.images.shape[1:]
    variables = stacking.stack([networks.init(network, jax.random.key(0), shape)])
    loss = next(iter(analysed.losses_of_analysis(config).values()))
    tangents = analysed.tangent_spaces(config, shape)
    analyse = analysed.analyser(config, network, shape, loss, stacking.device_mesh(1, config.chunk))
    images = data.Split(*(leaf[: config.chunk] for leaf in test))
    keys = jax.random.split(jax.random.key(0), len(images.labels))
    shared = (arrays, stacking.replica(variables, 0), config.analysis_epsilon, config.analysis_step_size)
    spaces, compiling_spaces = estimate.warm_and_cold(lambda: tangents(arrays, images.images))
    tangent = tangents(arrays, images.images)
    each, compiling = estimate.warm_and_cold(lambda: analyse(shared, variables, ((keys, images), tangent)))
    return spaces, each, compiling_spaces + compiling


EXPERIMENT = experiment.Experiment(
    name="manifold_distance",
    title="2.1 Loss gradients and the image manifold",
    question="Does adversarial training confine a network's loss gradient to the image manifold? If so, its "
    "adversarial examples lie nearer to their projection onto the manifold, and more of its gradient lies along it.",
    config=ManifoldConfig,
    presets=PRESETS,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "analysis_loss": "analysis",
        **evaluated.COLUMNS,
        "attack_success": "attack success",
        "median_distance": "median distance",
        "clean_median_distance": "of clean images",
        "rescaled_mode": "rescaled mode",
        "transfer_median_distance": "median distance, paper's success",
        "tangent_fraction": "tangent fraction",
        "tangent_fraction_chance": "of a random direction",
    },
    others={"notes": evaluated.NOTES},
    captions={
        "loss_gradients.png": "Test images, and gradients of the negative loss at the predicted label, from blue to "
        "red; with growing epsilon noise should give way to shapes.",
        "densities_*.png": "Distance of attacked images to the manifold, where clean images span 0 to 1 ({} analysis); "
        "the stronger a network's training, the farther left its curve should lie.",
        "tangent_fraction_*.png": "Share of the loss gradient along the manifold ({} analysis); it should grow with "
        "epsilon and lie above what a random direction gets (dashed).",
        "attacked_*.png": "Test images and what the {} analysis attack makes of them; those of robust networks should "
        "look like other classes, not like noise.",
        "manifold.png": "The manifold itself: projections should resemble the test images, samples other such images.",
    },
    estimate=estimated,
    paper_datasets=("mnist", "fashion_mnist", "cifar10"),
    takes="three minutes",
    picture="loss_gradients.png",
)

if __name__ == "__main__":
    experiment.main(EXPERIMENT, __doc__)
