r"""A network of yours, examined: how robust it is, whether its gradients keep to the manifold, what attributions say.

Takes trained networks as they are, in PyTorch, Flax, Equinox or as a function of JAX, and the test images of any data
set or of a folder of class folders. Nothing of the network is trained; the manifold is estimated from training images.

    python -m experiments.examine --network=net.py:build --weights=net.pt --dataset=./photos --image_size=32
    python -m experiments.examine --network=net.py:logits --dataset=digits --auto_attack=short   # a first look
    python -m experiments.examine --network=runs/manifold_distance-digits-quick:standard,net.py:logits

`net.py:build` is a function without parameters that returns an `nn.Module`, whose state is `net.pt`; `net.py:logits` is
a function of one image `[H, W, C]` in [-1, 1], or a module. Networks of a run stand beside it for comparison.

Expected: a page that says of each network what its numbers mean and what they are compared with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import (
    analysed,
    claims,
    evaluated,
    experiment,
    figures,
    measures,
    subjects,
    surfaces,
    trained,
)
from experiments.harness.analysed import AnalysisConfig, fields_of
from experiments.harness.config import AutoAttackConfig, ConfigError, Presets, setting, subsets
from experiments.harness.progress import counted
from experiments.harness.subjects import Subject
from experiments.harness.tables import Row
from experiments.harness.trained import Run
from robgrad import attacks, data, gradients, intervals, manifolds, networks, runs, stacking

# Images that fall first, which are shown.
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class ExamineConfig(AnalysisConfig, AutoAttackConfig):
    """Networks that were trained elsewhere, and what is asked of them."""

    most_pixels: ClassVar[int] = 224

    network: tuple[str, ...] = setting(
        "Networks: FILE.py:NAME (a module, a function that builds it, or a function of one image), a run's directory, "
        "or RUN:NETWORK; separated by commas.",
        (),
    )
    weights: tuple[str, ...] = setting(
        "A file of weights for each network from a Python file, - for none: a PyTorch state (.pt, .safetensors), or "
        "any file that the builder's parameter 'weights' takes.",
        (),
    )
    input_range: tuple[str, ...] = setting(
        "Lowest and highest pixel that networks from Python files take, as 0,1. Default: 0,1 for PyTorch, else -1,1.",
        (),
    )
    mean: tuple[str, ...] = setting("Mean of each channel that pixels are normalised by, after --input_range.", ("0",))
    std: tuple[str, ...] = setting("Deviation of each channel that pixels are divided by.", ("1",))
    norms: tuple[str, ...] = setting(
        "Norms in which the networks are attacked.", ("linf", "l2"), choices=lambda: tuple(attacks.NORMS)
    )
    evaluated: Mapping[str, tuple[float, ...]] = setting(
        "Radii of AutoAttack in the {} norm; pixels run from -1 to 1, so that 8/255 of [0, 1] is 0.0627.",
        by_norm="{}_evaluated",
    )
    attributions: tuple[str, ...] = setting(
        "Attributions and controls that are measured.",
        ("gradient", "gradient_times_input", "integrated_gradients", "smoothgrad", "noise_blurred", "edges"),
        choices=lambda: tuple(gradients.ATTRIBUTIONS),
    )
    measured_examples: int = setting("Test images of the measures of attributions, the first ones.", 50)
    sensitivity_samples: int = setting("Moved images of the sensitivity.", 3)
    # Of the networks' files, so that a changed network is another run.
    checksums: tuple[str, ...] = ()

    def __post_init__(self):
        """Refuses what cannot be examined."""
        if not self.network:
            raise ConfigError("--network: expected FILE.py:NAME, a run's directory, or RUN:NETWORK, got none")
        pixels_of(self)
        object.__setattr__(self, "checksums", subjects.checksums(self.network, self.weights))


def pixels_of(config: ExamineConfig) -> subjects.Pixels:
    """What networks of files take, in numbers."""

    def numbers(name: str, most: int | None = None) -> tuple[float, ...]:
        given = getattr(config, name)
        try:
            values = tuple(float(one) for one in given)
        except ValueError:
            values = (np.nan,)
        if not np.isfinite(values).all() or (most is not None and len(values) not in (0, most)):
            raise ConfigError(f"--{name}={','.join(given)}: expected finite numbers separated by commas")
        return values

    low, high = numbers("input_range", 2) or (None, None)
    mean, std = numbers("mean"), numbers("std")
    if low is not None and high is not None and low >= high:
        raise ConfigError(f"--input_range={low:g},{high:g}: expected the lower number first")
    if min(std) <= 0:
        raise ConfigError(f"--std={','.join(config.std)}: expected numbers above 0")
    return subjects.Pixels(low, high, mean, std)


_DIGITS: dict[str, Any] = {
    "held_out": 0,
    "train_examples": 1437,
    "test_examples": 200,
    "attacked_examples": 200,
    "manifold": ("pca", "local-pca"),
    "vae_gan_epochs": 80,
    "vae_gan_batch_size": 50,
    "reconstruction_weight": 5e-3,
    "analysis_epsilon": 6.0,
    "analysis_losses": ("xent",),
    "analysis_steps": 20,
    "chunk": 50,
    "evaluated": {"linf": (0.1, 0.2), "l2": (0.5, 1.0)},
}
_MNIST = _DIGITS | {
    "train_examples": 5000,
    "vae_gan_epochs": 16,
    "analysis_epsilon": 12.0,
    "evaluated": {"linf": (0.2, 0.6), "l2": (1.0, 2.0)},
}
_PHOTOGRAPHS = _MNIST | {
    "train_examples": 4000,
    "vae_gan_epochs": 1,
    "evaluated": {"linf": (4 / 255, 16 / 255), "l2": (0.25, 1.0)},
    "chunk": 10,
}
PRESETS: Presets = {
    "quick": {
        "digits": _DIGITS,
        "shapes-16": _DIGITS | {"train_examples": 3000, "analysis_epsilon": 3.0},
        "shapes": _MNIST,
        "mnist": _MNIST,
        "fashion_mnist": _MNIST | {"evaluated": {"linf": (0.1, 0.2), "l2": (1.0, 2.0)}},
        "cifar10": _PHOTOGRAPHS,
    },
    "paper": {
        "mnist": _MNIST | {"train_examples": 55000, "test_examples": 10000, "attacked_examples": 1000},
        "fashion_mnist": _MNIST | {"train_examples": 55000, "test_examples": 10000, "attacked_examples": 1000},
        "cifar10": _PHOTOGRAPHS | {"train_examples": 50000, "test_examples": 10000, "attacked_examples": 1000},
    },
}


def subjects_of(run: Run) -> list[Subject]:
    """The networks of a run's configuration."""
    config = run.config
    layered = [name for name in config.attributions if name in gradients.LAYERED]
    found = subjects.loaded(
        config.network, config.weights, pixels_of(config), run.image_shape, len(run.dataset.classes)
    )
    if layered:
        raise ConfigError(
            f"--attributions={layered[0]}: expected attributions by gradients or by perturbation; those that propagate "
            "through layers take robgrad's own networks alone, by experiments.faithfulness"
        )
    return found


def measure(run: Run) -> experiment.Arrays:
    """Of each network AutoAttack along radii, the analysis against manifolds, and the measures of attributions."""
    config = run.config
    every = subjects_of(run)
    train, test = subsets(config, run.dataset)
    found: experiment.Arrays = {"names": np.array([one.name for one in every]), "labels": np.asarray(test.labels)}
    found["predicted"] = np.stack([predicted(run, one, test.images) for one in every])
    for norm in config.norms:
        what = f"AutoAttack ({config.auto_attack}) in {norm}, {len(every)} networks"
        parts = [attacked(run, one, test, norm) for _, one in counted(every, what)]
        found |= {f"notes/{norm}/{one.name}": part.pop("notes") for one, part in zip(every, parts, strict=True)}
        found |= {f"{norm}/{name}": np.stack([part[name] for part in parts]) for name in parts[0]}
    arrays = surfaces.fitted(run, train)
    keys = jax.random.split(trained.key_of(config.seed, "examine"), 3)
    found |= surfaces.pictures(run, arrays, test, keys[0]) | surfaces.qualities(run, arrays, train, test)
    analyses = []
    for one in every:
        # Each has an architecture of its own, and keeps its blocks in a place of its own.
        own = run._replace(workdir=run.workdir / "analysis" / one.name)
        stack = stacking.stack([one.variables])
        analyses.append(analysed.measured(own, one.network, stack, arrays, train, test, keys[1]))
    found |= _beside(analyses)
    return found | scores_of(run, every, test, keys[2])


def predicted(run: Run, subject: Subject, images: np.ndarray) -> np.ndarray:
    """The class of each image, `[image]`; -1 where the logits are not finite."""
    of_batch = jax.jit(jax.vmap(lambda image: networks.predicted(subject.logits_fn(data.scale(image)))))
    chunk = run.config.chunk
    parts = [of_batch(jnp.asarray(images[first : first + chunk])) for first in range(0, len(images), chunk)]
    return np.concatenate([np.asarray(part) for part in parts])


def attacked(run: Run, subject: Subject, test: data.Split, norm: str) -> experiment.Arrays:
    """AutoAttack on the first images along radii; the adversarial images are a file of the run, for other tools."""
    config, some = run.config, evaluated.attacked_of(run.config, test)
    radii, images = config.evaluated[norm], np.asarray(data.scale(jnp.asarray(some.images)))
    found = attacks.robust_accuracy(
        subject.logits_fn,
        images,
        some.labels,
        epsilon=radii,
        norm=norm,
        version=config.auto_attack,
        seed=config.seed,
        batch=min(100, 10 * config.chunk),
        state=run.workdir / "analysis" / f"auto_attack-{norm}-{subject.name}.npz",
    )
    robust, last = np.stack([one.robust for one in found]), found[-1]
    falls = np.where(robust.all(0), np.nan, np.array(radii)[np.argmin(robust, axis=0)])
    wrong = np.asarray(last.broken_by) == attacks.WRONG
    falls = np.where(wrong, 0.0, falls)
    adversarial = np.asarray(last.adversarial)
    kept = {"images": images, "labels": np.asarray(some.labels)}
    kept |= {"adversarial": adversarial, "radius": falls, "broken_by": last.broken_by, "pixel_range": np.array([-1, 1])}
    runs.write_arrays(run.workdir / "adversarial" / f"{subject.name}-{norm}.npz", kept)
    first = np.argsort(np.where(wrong | np.isnan(falls), np.inf, falls), kind="stable")[:SHOWN]
    return {
        "robust": robust,
        "broken_by": np.stack([one.broken_by for one in found]),
        "falls": falls,
        "fooled": predicted(run, subject, adversarial),
        "first": first,
        "shown": adversarial[first].astype(np.float16),
        "shown_clean": images[first].astype(np.float16),
        "notes": np.array(sorted({note for one in found for note in one.notes}), str),
    }


def _beside(analyses: Sequence[experiment.Arrays]) -> experiment.Arrays:
    """Analyses of several networks as one: what is of networks joined, what is of images once."""
    first, *others = analyses
    stacked = [name for name, values in first.items() if not _of_images(name)]
    return first | {name: np.concatenate([one[name] for one in (first, *others)]) for name in stacked}


def _of_images(name: str) -> bool:
    """Whether a measurement is of images alone, as a manifold's distance is."""
    parts = name.split("/")
    return parts[0] in manifolds.KINDS


def scores_of(run: Run, every: Sequence[Subject], test: data.Split, key: jax.Array) -> experiment.Arrays:
    """The measures of attributions of each network."""
    config = run.config
    rankings = {name: gradients.ATTRIBUTIONS[name] for name in config.attributions}
    signed = {name: gradients.SIGNED[name] for name in config.attributions}

    def of_one(subject: Subject, keys: jax.Array, some: data.Split) -> experiment.Arrays:
        fresh = subjects.randomised(trained.key_of(config.seed, "randomised"), subject.variables)
        score = measures.of_images(subject.network, fresh, rankings, signed, config.sensitivity_samples, config.chunk)
        said = score(subject.variables, keys, some)
        # Networks that show no parameters cannot be randomised.
        return {"randomisation": np.full_like(said["road"], np.nan), **said}

    parts = measures.of_networks(run, every, every.__getitem__, test, key, of_one)
    found = measures.joined(parts, [*rankings], test.images)
    # The manifold's pictures show more of the same images.
    del found["shown/test"]
    return found


def tabulate(config: ExamineConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row a network; tables of radii, manifolds, attributions, classes and fallen images; and all of it in words."""
    names, labels = arrays["names"].tolist(), arrays["labels"]
    tables: experiment.Tables = {
        "robust": robust_rows(config, arrays),
        "aligned": aligned_rows(config, arrays),
        "attributed": attributed_rows(arrays),
        "by_class": class_rows(config, arrays),
        "fallen": fallen_rows(config, arrays),
        "manifolds": surfaces.rows_of_manifolds(config, arrays),
        "notes": [
            {"network": name, "norm": norm, "note": str(note)}
            for norm in config.norms
            for name in names
            for note in arrays[f"notes/{norm}/{name}"]
        ],
    }
    rows = []
    for place, name in enumerate(names):
        row: Row = {"network": name, "test_accuracy": np.mean(arrays["predicted"][place] == labels)}
        for table, wanted in (
            ("robust", ("norm", "epsilon", "robust_accuracy", "robust_accuracy_low", "robust_accuracy_high")),
            ("aligned", ("manifold", "tangent_fraction", "fraction_same_class", "tangent_fraction_covariance")),
            ("attributed", ("attribution", "road")),
        ):
            first = next(one for one in tables[table] if one["network"] == name)
            row |= {field: first[field] for field in wanted}
        rows.append(row)
    words = [{"network": name, "in_words": said} for name in names for said in words_of(config, name, tables, rows)]
    return {"rows": rows, "words": words, **tables}


def robust_rows(config: ExamineConfig, arrays: experiment.Arrays) -> list[Row]:
    """A row for each network, norm and radius."""
    rows = []
    for place, name in enumerate(arrays["names"].tolist()):
        for norm in config.norms:
            clean = np.mean(arrays[f"{norm}/broken_by"][place, 0] != attacks.WRONG)
            for at, radius in enumerate(config.evaluated[norm]):
                value, low, high = intervals.of_share(arrays[f"{norm}/robust"][place, at][None])
                row = {"network": name, "norm": norm, "epsilon": radius, "clean_accuracy": clean}
                row |= {"robust_accuracy": value, "robust_accuracy_low": low, "robust_accuracy_high": high}
                rows.append(row)
    return rows


def aligned_rows(config: ExamineConfig, arrays: experiment.Arrays) -> list[Row]:
    """A row for each network, manifold and loss of the analysis attack."""
    rows = []
    for place, name in enumerate(arrays["names"].tolist()):
        for manifold in config.manifold:
            for loss in config.analysis_losses:
                fields = fields_of(arrays, loss, manifold)
                own = {field: values[place] if values.ndim == 2 else values for field, values in fields.items()}
                value, low, high = _mean(own["tangent_fraction"])
                moved = own["attacked_distance"][own["own"]]
                row = {"network": name, "manifold": manifold, "analysis_loss": loss, "tangent_fraction": value}
                row |= {"tangent_fraction_low": low, "tangent_fraction_high": high}
                row |= {field: np.nanmean(own[field]) for field in analysed.FRACTIONS[1:]}
                row |= {"tangent_fraction_covariance": np.mean(own["covariance_chance"])}
                row |= {"tangent_fraction_chance": np.mean(own["chance"]), "attack_success": np.mean(own["own"])}
                row |= {"median_distance": np.median(moved) if len(moved) else np.nan}
                rows.append(row | {"clean_median_distance": np.median(own["distance"])})
    return rows


def attributed_rows(arrays: experiment.Arrays) -> list[Row]:
    """A row for each network and attribution: the mean of each measure over images."""
    known = [name for name in measures.MEASURES if f"measure/{name}" in arrays]
    return [
        {"network": name, "attribution": attribution.replace("_", " ")}
        | {one: _nanmean(arrays[f"measure/{one}"][place, at]) for one in known}
        for place, name in enumerate(arrays["names"].tolist())
        for at, attribution in enumerate(arrays["attributions"].tolist())
    ]


def class_rows(config: ExamineConfig, arrays: experiment.Arrays) -> list[Row]:
    """A row for each network and class: accuracies at the first radius, and what it is taken for most often."""
    rows, norm = [], config.norms[0]
    for place, name in enumerate(arrays["names"].tolist()):
        robust, fooled = arrays[f"{norm}/robust"][place, 0], arrays[f"{norm}/fooled"][place]
        labels, some = arrays["labels"], arrays["labels"][: len(robust)]
        for label in np.unique(labels):
            own, taken = some == label, fooled[(some == label) & (fooled != label)]
            clean = np.mean(arrays["predicted"][place][labels == label] == label)
            row: Row = {"network": name, "class": int(label), "images": int(np.sum(labels == label))}
            row |= {"clean_accuracy": clean, "robust_accuracy": robust[own].mean() if own.any() else np.nan}
            values, counts = np.unique(taken, return_counts=True)
            rows.append(row | {"taken_for": int(values[counts.argmax()]) if len(values) else None})
    return rows


def fallen_rows(config: ExamineConfig, arrays: experiment.Arrays) -> list[Row]:
    """A row for each of the images that fall first, of each network and norm."""
    rows = []
    for norm in config.norms:
        for place, name in enumerate(arrays["names"].tolist()):
            for image in arrays[f"{norm}/first"][place]:
                radius = arrays[f"{norm}/falls"][place, image]
                if not radius > 0:
                    continue
                row: Row = {"network": name, "norm": norm, "image": int(image), "class": int(arrays["labels"][image])}
                row |= {"taken_for": int(arrays[f"{norm}/fooled"][place, image]), "epsilon": radius}
                rows.append(row | {"attack": str(arrays[f"{norm}/broken_by"][place, -1, image])})
    return rows


def _mean(values: np.ndarray) -> tuple[float, float, float]:
    """The mean over images `[image]` of what is finite, with its 95% interval."""
    finite = values[np.isfinite(values)]
    if len(finite) < claims.LEAST_IMAGES:
        return (float(finite.mean()) if len(finite) else np.nan), np.nan, np.nan
    value, low, high = intervals.of_seeds_and_rows(finite[None], intervals.mean)
    return float(value), float(low), float(high)


def _nanmean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def words_of(config: ExamineConfig, name: str, tables: experiment.Tables, rows: Sequence[Row]) -> Iterator[str]:
    """What the numbers of a network mean, a sentence or two for each question."""
    mine = {table: [row for row in tables[table] if row["network"] == name] for table in ("robust", "aligned")}
    row = next(one for one in rows if one["network"] == name)
    first = mine["robust"][0]
    left = ", ".join(f"{one['robust_accuracy']:.0%} in {one['norm']} {one['epsilon']:.3g}" for one in mine["robust"])
    said = f"Right on {row['test_accuracy']:.0%} of {config.test_examples} test images; after AutoAttack "
    said += f"({config.auto_attack}) on {config.attacked_examples} of them on {left}"
    others = [one for one in rows if one["network"] != name]
    if others:
        best = max(others, key=lambda one: one["robust_accuracy"])
        said += f"; of the others {best['network']} is best with {best['robust_accuracy']:.0%} in "
        said += f"{first['norm']} {first['epsilon']:.3g}"
    yield f"{said}."
    for one in mine["aligned"]:
        own, same = one["tangent_fraction"], one["fraction_same_class"]
        spread, chance = one["tangent_fraction_covariance"], one["tangent_fraction_chance"]
        above = "its own is above both" if own > max(same, spread) else "its own is not above both"
        yield (
            f"By {manifolds.KINDS[one['manifold']].title}, {own:.2f} of its loss gradient's squared length lies along "
            f"the manifold (a random direction {chance:.2f}). Another image's tangent space, of the same class, holds "
            f"{same:.2f} of it, and a direction with the data's covariance has {spread:.2f}: {above}."
        )
        if np.isfinite(one["median_distance"]):
            yield (
                f"Attacked with l2 radius {config.analysis_epsilon:g} its images lie {one['median_distance']:.2f} from "
                f"that manifold at the median, clean ones {one['clean_median_distance']:.2f}."
            )
    scores = {one["attribution"]: one["road"] for one in tables["attributed"] if one["network"] == name}
    knows = {at: score for at, score in scores.items() if at.replace(" ", "_") not in gradients.CONTROLS}
    nothing = {at: score for at, score in scores.items() if at not in knows}
    if knows:
        best = max(knows, key=knows.__getitem__)
        said = f"By ROAD its most faithful attribution is {best} ({knows[best]:.2f}; 0 is that of random pixels)"
        if nothing:
            control = max(nothing, key=nothing.__getitem__)
            said += f"; {control}, which knows nothing of the network, has {nothing[control]:.2f}"
        yield f"{said}."


def claim(config: ExamineConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """Whether a network's gradients keep to the manifold and its attributions beat a control; of these networks alone.

    One training tells nothing of another one, so that verdicts are 'seen once'.
    """
    del tables
    for place, name in enumerate(arrays["names"].tolist()):
        for manifold in config.manifold:
            fields = fields_of(arrays, config.analysis_losses[0], manifold)
            own, group = fields["tangent_fraction"][place], f"{name}; {manifolds.KINDS[manifold].title}"
            text = "more of the loss gradient lies along the manifold than of a direction with the data's covariance"
            yield _judged(text, group, own - fields["covariance_chance"])
            text = "more of it lies along the image's tangent space than along that of another image of its class"
            gaps = own - fields["fraction_same_class"][place]
            if np.nanmax(np.abs(gaps), initial=0.0) > 1e-6:  # Tangent spaces of a plane are all the same.
                yield _judged(text, group, gaps)
        known = arrays["attributions"].tolist()
        for control in [one for one in known if one in gradients.CONTROLS]:
            for one in [one for one in known if one not in gradients.CONTROLS][:1]:
                road = arrays["measure/road"][place]
                gap = road[known.index(one)] - road[known.index(control)]
                text = "an attribution is more faithful by ROAD than a control that knows nothing of the network"
                yield _judged(text, f"{name}; {one} against {control}".replace("_", " "), gap)


def _judged(text: str, group: str, gaps: np.ndarray) -> Row:
    value, low, high = _mean(gaps)
    over = claims.Over(1, f"{np.isfinite(gaps).sum()} images; this network alone")
    return claims.row(claims.Claim("-", text, group, "-", over), f"{value:+.3f}", low, high, claims.Steps(low, high))


def draw(workdir: Path, config: ExamineConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Accuracy against radius, shares of the gradient, gradients, images that fall, attacked images, attributions."""
    names = arrays["names"].tolist()
    colours, panels = figures.distinct(names), {}
    for norm in config.norms:
        curves = {}
        for name in names:
            mine = [row for row in tables["robust"] if (row["network"], row["norm"]) == (name, norm)]
            halves = [(row["robust_accuracy_high"] - row["robust_accuracy_low"]) / 2 for row in mine]
            x, y = [row["epsilon"] for row in mine], [row["robust_accuracy"] for row in mine]
            curves[name] = ([0.0, *x], [mine[0]["clean_accuracy"], *y], [0.0, *np.nan_to_num(halves)])
        panels[f"{norm}, AutoAttack {config.auto_attack}"] = curves
    figures.curve_figure(workdir / "robust_accuracy.svg", panels, "radius, pixel range 2", "accuracy", colours)
    groups: dict[str, dict[str, list[figures.Interval]]] = {}
    for row in tables["aligned"]:
        if row["analysis_loss"] == config.analysis_losses[0]:
            own = tuple(row[f"tangent_fraction{end}"] for end in ("", "_low", "_high"))
            others = [(row[field],) * 3 for field in ("fraction_same_class", "tangent_fraction_covariance")]
            groups.setdefault(manifolds.KINDS[row["manifold"]].title, {})[row["network"]] = [own, *others]
    marks = ("the image's own tangent space", "another image's of its class", "direction with the data's covariance")
    label = "share of the loss gradient along the manifold"
    figures.intervals_figure(workdir / "tangent_fraction.svg", groups, {}, label, colours, marks)
    images, loss = arrays["shown/test"], config.analysis_losses[0]
    slopes = dict(zip(names, arrays[f"shown/{loss}/gradient"], strict=True))
    figures.image_grid(workdir / "loss_gradients.svg", {"test image": images}, slopes)
    moved = dict(zip(names, arrays[f"shown/{loss}/attacked"], strict=True))
    figures.image_grid(workdir / "attacked.svg", {"test image": images, **moved})
    for norm in config.norms:
        grid = {}
        for place, name in enumerate(names):
            grid |= {f"{name}: test image": arrays[f"{norm}/shown_clean"][place]}
            grid |= {f"{name}: adversarial": arrays[f"{norm}/shown"][place]}
        figures.image_grid(workdir / f"fallen_{norm}.svg", grid)
    maps = arrays["shown/maps"].astype(np.float32)
    grid = {name: maps[place, :, 0, :, :, None] for place, name in enumerate(names)}
    headings = [name.replace("_", " ") for name in arrays["attributions"].tolist()]
    figures.image_grid(workdir / "attributions.svg", {"test image": images[:1]}, grid, headings=headings)


EXPERIMENT = experiment.Experiment(
    name="examine",
    title="Your network, examined",
    question="How robust is it, how much of its gradient lies along the image manifold, and how faithful are its "
    "attributions?",
    config=ExamineConfig,
    presets=PRESETS,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "test_accuracy": "test accuracy",
        "norm": "norm",
        "epsilon": "radius",
        "robust_accuracy": "robust accuracy",
        "tangent_fraction": "gradient along the manifold",
        "robust_accuracy_low": "robust accuracy, 95% from",
        "robust_accuracy_high": "to",
        "manifold": "by the manifold",
        "fraction_same_class": "along that of another image of its class",
        "tangent_fraction_covariance": "of a direction with the data's covariance",
        "attribution": "attribution",
        "road": "ROAD",
    },
    others={
        "words": ("What the numbers mean", ("network", "in_words")),
        "robust": (
            "Accuracy along radii",
            (
                *("network", "norm", "epsilon", "clean_accuracy"),
                *("robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"),
            ),
        ),
        "aligned": (
            "The loss gradient, and attacked images, against each manifold",
            (
                *("network", "manifold", "analysis_loss", "tangent_fraction", "fraction_same_class"),
                *("fraction_elsewhere", "tangent_fraction_covariance", "tangent_fraction_chance", "attack_success"),
                *("median_distance", "clean_median_distance"),
            ),
        ),
        "attributed": (
            "Attributions and controls, by measures without retraining",
            (
                *("network", "attribution", "road", "deletion", "insertion", "infidelity", "sensitivity"),
                *("randomisation", "smoothness"),
            ),
        ),
        "by_class": (
            "Each class, at the first radius of the first norm",
            ("network", "class", "images", "clean_accuracy", "robust_accuracy", "taken_for"),
        ),
        "fallen": (
            "Images that fall first; adversarial images are in the run's folder `adversarial`",
            ("network", "norm", "image", "class", "taken_for", "epsilon", "attack"),
        ),
        "manifolds": surfaces.MANIFOLDS,
        "notes": evaluated.NOTES,
    },
    captions={
        "robust_accuracy.svg": "Accuracy against radius; bars are 95% intervals over images.",
        "tangent_fraction.svg": "Share of the loss gradient's squared length along each manifold; bars are the image's "
        "own tangent space, marks what it should lie above.",
        "loss_gradients.svg": "Test images, and gradients of the negative loss at the predicted label, from blue to "
        "red.",
        "fallen_*.svg": "Images that fall first in {}, before and after the attack.",
        "attacked.svg": "Test images after the analysis attack, whose radius is large: robust networks' look like "
        "other classes.",
        "attributions.svg": "The first test image, and what each attribution says of it.",
    },
    estimate=lambda config, dataset, options, others: iter(()),
    takes="two minutes",
    picture="robust_accuracy.svg",
    alone=True,
)

if __name__ == "__main__":
    experiment.main(EXPERIMENT, __doc__)
