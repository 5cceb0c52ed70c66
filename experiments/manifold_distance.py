r"""Section 2.1: adversarial training confines loss gradients to the image manifold.

Trains a standard and several adversarially trained networks and fits one manifold or several (the paper's VAE-GAN, PCA
of all images or of neighbours, a denoiser, the exact one where it is known), attacks the test images, and measures how
far the attacked images lie from each manifold and how much of each loss gradient lies along it, beside what other
directions and other images' tangent spaces give.

    python -m experiments.manifold_distance                                   # digits, minutes on 2 cores
    python -m experiments.manifold_distance --manifold=pca --network_seeds=3
    python -m experiments.manifold_distance --dataset=shapes --manifold=all
    python -m experiments.manifold_distance --dataset=fashion_mnist --preset=quick
    python -m experiments.manifold_distance --dataset=mnist --preset=paper    # a large GPU

Expected: from the standard network over growing training epsilon the median distance falls and the
tangent fraction rises. Published modes of the rescaled distance (xent analysis, l2-xent networks):
MNIST 0.63 (standard), 0.60, 0.50, 0.42; Fashion-MNIST 0.62, 0.59, 0.53, 0.43; CIFAR-10 0.115, 0.112,
0.105, 0.094.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.harness import experiment, running
from experiments.harness.measurement import alignment, estimates, evaluation
from experiments.harness.measurement.alignment import AnalysedConfig, fields_of
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, with_interval
from experiments.harness.settings.config import EvaluatedConfig, subsets
from experiments.harness.training import stages
from experiments.harness.training.specs import groups_of, kinds_of, specs_of
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims, modes
from robgrad import intervals, manifolds
from robgrad.manifolds import densities

# Successful attacks below which no interval is given.
FEWEST = claims.FEWEST


@dataclass(frozen=True, kw_only=True)
class ManifoldConfig(AnalysedConfig, EvaluatedConfig):
    """Section 2.1: manifolds, the analysis attack, and accuracies."""


def measure(run: Run) -> experiment.Arrays:
    """Everything that tables, claims and figures need, by name; of each image and network where it says so."""
    config = run.config
    train, test = subsets(config, run.dataset)
    trained = stages.train_networks(run, specs_of(config), train)
    keys = jax.random.split(stages.key_of(config.seed, "manifold_distance"), 3)
    arrays, measured = estimates.fitted(run, train, test, keys[0])
    measured |= evaluation.hits_of(run, trained, test, keys[1])
    return measured | alignment.measured(run, trained, arrays, train, test, keys[2])


def tabulate(config: ManifoldConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """One row a kind of network, manifold and analysis loss, averaged over its seeds; one a manifold."""
    specs, rows = specs_of(config), []
    for name, loss in itertools.product(config.manifold, config.analysis_losses):
        fields = fields_of(arrays, loss, name)
        for members in kinds_of(specs).values():
            own = {field: values[members] if values.ndim == 2 else values for field, values in fields.items()}
            about = {"network_seeds": len(members), "manifold": name, "analysis_loss": loss}
            accuracy = evaluation.accuracies(config, arrays, members)
            rows.append({**specs[members[0]].row, **about, **accuracy, **_of_kind(own, arrays["clean_hits"][members])})
    notes = evaluation.notes_of(specs, "l2", arrays)
    return {"rows": rows, "manifolds": estimates.rows_of_manifolds(config, arrays), "notes": notes}


def _of_kind(own: experiment.Arrays, right: np.ndarray) -> Row:
    """What a row says of one kind of network, `[seed, image]`; `right` says which images were before the attack."""
    row: Row = {"attack_success": np.mean(np.sum(own["own"] & right, axis=1) / np.maximum(right.sum(axis=1), 1))}
    row["transfer_attack_success"] = np.mean(own["transfer"])
    clean = own["distance"]
    for prefix, success in (("", own["own"]), ("transfer_", own["transfer"])):
        kept = np.where(success, own["attacked_distance"], np.nan)
        found = [densities.mode(modes.rescaled(one[np.isfinite(one)], clean)) for one in kept]
        row |= {
            **_bounded(f"{prefix}median_distance", kept, intervals.median),
            f"{prefix}mean_distance": np.nanmean(kept) if success.any() else np.nan,
            f"{prefix}rescaled_mode": np.mean(found),
        }
    kept = np.where(own["own"], own["attacked_distance"], np.nan)
    most = max(densities.peaks(modes.rescaled(one[np.isfinite(one)], clean)) for one in kept)
    fractions = own["tangent_fraction"]
    return row | {
        "mode_is": ("unstable" if most > 1 else "stable") + (", not rescaled" if modes.on_manifold(clean) else ""),
        "clean_median_distance": np.median(clean),
        "clean_rescaled_mode": densities.mode(modes.rescaled(clean, clean)),
        **_bounded("tangent_fraction", fractions, intervals.mean),
        "root_fraction": np.mean(intervals.mean(np.sqrt(fractions.T))),
        **{name: np.mean(intervals.mean(own[name].T)) for name in alignment.FRACTIONS[1:] if name in own},
        "tangent_fraction_covariance": np.mean(own["covariance_chance"]) if "covariance_chance" in own else np.nan,
        "tangent_fraction_chance": np.mean(own["chance"]),
        "gradient_norm": np.median(own["gradient_norm"]),
        "zero_gradients": int(np.sum(~np.isfinite(fractions))),
    }


def _bounded(name: str, values: np.ndarray, statistic) -> Row:
    """A statistic of `[seed, image]` and its interval; NaN where a seed has no value."""
    finite = np.isfinite(values).sum(axis=1)
    if (finite < FEWEST).any():
        # A bootstrap of a few successes would be far too narrow.
        value = np.mean([statistic(one) for one in values]) if finite.all() else np.nan
        return with_interval(name, (value, np.nan, np.nan))
    if len(values) == 1:
        values = values[:, np.isfinite(values[0])]
    return with_interval(name, intervals.of_seeds_and_rows(values, statistic))


def claim(config: ManifoldConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """The order of distances and tangent fractions in each group and by each manifold, and the published modes."""
    del tables
    specs = specs_of(config)
    places = kinds_of(specs)
    for name, loss in itertools.product(config.manifold, config.analysis_losses):
        fields = fields_of(arrays, loss, name)
        clean = np.broadcast_to(fields["distance"], (config.network_seeds, len(fields["distance"])))
        for (norm, train_loss), kinds in groups_of(specs).items():
            over = claims.Over(config.network_seeds, f"{clean.shape[1]} images")
            group = f"{norm}, {train_loss}; {loss} analysis"
            group += "" if name == "vae-gan" else f"; {manifolds.KINDS[name].title}"
            of = partial(claims.Claim, "2.1", group=group, over=over)
            kept = {
                kind: np.where(fields["own"][places[kind]], fields["attacked_distance"][places[kind]], np.nan)
                for kind in kinds
            }
            columns = np.stack([*kept.values(), clean], axis=2)
            theirs = "standard > ... > test data" if name == "vae-gan" else "-"
            one = of(text=texts_of(name)[0], published=theirs)
            yield claims.ordered(one, columns, intervals.median, last="clean test images")
            fractions = np.stack([fields["tangent_fraction"][places[kind]] for kind in kinds], axis=2)
            yield claims.ordered(of(text=texts_of(name)[1], published="-"), fractions, intervals.mean, rises=True)
            if (name, norm, train_loss, loss) == ("vae-gan", "l2", "xent", "xent"):
                yield from modes.claim(config, clean, kept)


def texts_of(manifold: str) -> tuple[str, str]:
    """What is claimed of distances and of fractions: of the paper's manifold, the VAE-GAN, or of another."""
    if manifold == "vae-gan":
        return (
            "median distance to the manifold falls with strength",
            "share of the loss gradient along the manifold rises with strength (our measure)",
        )
    return (
        "median distance falls with strength, by other manifolds than the paper's (our test)",
        "share of the loss gradient along it rises with strength, by other manifolds than the paper's (our test)",
    )


def draw(workdir: Path, config: ManifoldConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Of each analysis attack densities, attacked images, tangent fractions; loss gradients; the manifolds."""
    specs = specs_of(config)
    places, images = kinds_of(specs), arrays["shown/test"]
    colours = figures.palette([*places])
    for index, (name, loss) in enumerate(itertools.product(config.manifold, config.analysis_losses)):
        fields, title = fields_of(arrays, loss, name), manifolds.KINDS[name].title
        clean, panels = fields["distance"], {}
        for (norm, train_loss), kinds in groups_of(specs).items():
            # On an exact manifold their density is a spike that hides all others.
            curves = {"test data": np.empty(0) if modes.on_manifold(clean) else modes.rescaled(clean, clean)}
            for kind in kinds:
                own = fields["own"][places[kind]]
                curves[kind] = modes.rescaled(fields["attacked_distance"][places[kind]][own], clean)
            panels[f"{norm}, {train_loss}"] = curves
        # The first manifold's files are named as they were when there was one.
        of = f"{loss}" if name == config.manifold[0] else f"{name}_{loss}"
        unit = "" if modes.on_manifold(clean) else ", rescaled"
        xlabel = f"distance{unit} ({title}, {loss} analysis)"
        figures.density_figure(workdir / f"densities_{of}.svg", panels, xlabel, colours)
        rows = [row for row in tables["rows"] if (row["manifold"], row["analysis_loss"]) == (name, loss)]
        alignment.draw_fractions(workdir / f"tangent_fraction_{of}.svg", rows, f"along the manifold ({title})", colours)
        if index < len(config.analysis_losses):
            shown = {kind: arrays[f"shown/{loss}/attacked"][members[0]] for kind, members in places.items()}
            figures.image_grid(workdir / f"attacked_{loss}.svg", {"test image": images, **shown})
    first = arrays[f"shown/{config.analysis_losses[0]}/gradient"]
    slopes = {kind: first[members[0]] for kind, members in places.items()}
    figures.image_grid(workdir / "loss_gradients.svg", {"test image": images}, slopes)
    figures.image_grid(workdir / "manifold.svg", {"test image": images, **estimates.rows_of_pictures(config, arrays)})


EXPERIMENT = experiment.Experiment(
    name="manifold_distance",
    title="2.1 Loss gradients and the image manifold",
    question="Does adversarial training confine a network's loss gradient to the image manifold? If so, its "
    "adversarial examples lie nearer to their projection onto the manifold, and more of its gradient lies along it.",
    config=ManifoldConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "manifold": "manifold",
        "analysis_loss": "analysis",
        "median_distance": "median distance",
        "tangent_fraction": "tangent fraction",
        **evaluation.COLUMNS,
        "untrained": "seeds not trained",
        "attack_success": "attack success",
        "clean_median_distance": "of clean images",
        "rescaled_mode": "rescaled mode",
        "mode_is": "which is",
        "transfer_median_distance": "median distance, paper's success",
        "root_fraction": "its root",
        "fraction_same_class": "along another image's tangent space, same class",
        "fraction_elsewhere": "any class",
        "tangent_fraction_covariance": "of a direction with the data's covariance",
        "tangent_fraction_chance": "of a random direction",
    },
    others={"manifolds": estimates.MANIFOLDS, "notes": evaluation.NOTES},
    captions={
        "loss_gradients.svg": "Test images, and gradients of the negative loss at the predicted label, from blue to "
        "red; with growing epsilon noise should give way to shapes, as Fashion-MNIST's does. In digits' 8x8 pixels "
        "little of that is to be seen: there the shares along the manifold tell.",
        "densities_*.svg": "Distance of attacked images to the manifold, where clean images span 0 to 1, or as it is "
        "where they lie on the manifold ({} analysis); "
        "the stronger a network's training, the farther left its curve should lie.",
        "tangent_fraction_*.svg": "Share of the loss gradient along the manifold ({} analysis); it should grow with "
        "epsilon, lie above what other directions get (lines), and above what other images' tangent spaces hold of it.",
        "attacked_*.svg": "Test images and what the {} analysis attack makes of them; those of robust networks should "
        "look like other classes, not like noise.",
        "manifold.svg": "Projections on the manifold should resemble the test images, samples other such images.",
    },
    paper_datasets=("mnist", "fashion_mnist", "cifar10"),
    takes="three to four minutes",
    picture="loss_gradients.svg",
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
