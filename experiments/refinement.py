r"""The neighbours, 2: refinement guided by explanations, on images with a spurious mark.

LIME-guided refinement (Nayyem, Rakin and Wang, 2024; Wang et al., 2026) flags the regions that LIME finds irrelevant or
misleading, hides them in a share of the images, penalises sensitivity to them, and trains adversarially, in rounds.
Training images carry a mark whose place gives the class away: what is spurious is known, can be taken away and moved.
LIME as the guide stands beside the gradient of a robust network, the true mask where there is one,
and no guide at all: adversarial training for as long.

    python -m experiments.refinement                            # rendered shapes, four minutes on 2 cores
    python -m experiments.refinement --dataset=fashion_mnist --guides=lime,robust-gradient

Expected, from the abstracts: robust accuracy and accuracy off the distribution rise; clean accuracy pays little.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import claims, estimate, evaluated, experiment, figures, launch, presets, trained
from experiments.harness.config import AutoAttackConfig, ConfigError, FittedConfig, setting, subsets
from experiments.harness.options import Options
from experiments.harness.tables import Row
from experiments.harness.trained import Run
from robgrad import attacks, data, gradients, networks, runs, stacking, training
from robgrad.data import corruptions, marks

SECTION = "refinement"
STANDARD, ADVERSARIAL, GUIDED, MASK = "standard", "adversarial", "guided", "true-mask"
GUIDES = ("lime", "robust-gradient", MASK)
# Test sets by name: the mark where training had it, gone, that of another class; corrupted without it.
SETS = ("marked", "removed", "moved", "corrupted")
SEVERITY = 3
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class RefinementConfig(FittedConfig, AutoAttackConfig):
    """Guides, rounds, and what a round does."""

    guides: tuple[str, ...] = setting(
        "What says which regions matter; true-mask where the data set knows it.", GUIDES, choices=lambda: GUIDES
    )
    rounds: int = setting("Rounds of explaining and training on.", 2)
    flagged_share: float = setting("Share of an image that is flagged, the least relevant.", 0.5, most=1.0)
    penalty: float = setting("Weight of the squared gradient on what is flagged.", 10.0, zero=True)
    lime_samples: int = setting("Evaluations of the network for each explanation of LIME.", 100)
    mark_agreement: float = setting(
        "Share of training images whose mark tells their class for sure; others' marks are drawn.", 0.9, most=1.0
    )
    train_radius: float = setting("Radius of training and of AutoAttack, in l-inf.")
    train_step_size: float = setting("Step of PGD in training.")


_SETTINGS = {"network_seeds": 3}
_OF = {
    "mnist": {"train_radius": 0.2, "train_step_size": 0.1},
    "fashion_mnist": {"train_radius": 0.1, "train_step_size": 0.05},
    "cifar10": {"train_radius": 16 / 255, "train_step_size": 0.03},
}
PRESETS = presets.extended(
    presets.AUTO_ATTACK,
    {
        "paper": {name: _SETTINGS | values | {"lime_samples": 500} for name, values in _OF.items()},
        "quick": {
            **{name: _SETTINGS | values | {"train_examples": 1000} for name, values in _OF.items()},
            "digits": _SETTINGS | {"train_radius": 0.2, "train_step_size": 0.05, "epochs": 5, "standard_epochs": 10},
            "shapes-16": _SETTINGS
            | {"train_radius": 0.05, "train_step_size": 0.02, "train_examples": 1000, "test_examples": 200}
            | {"epochs": 4, "standard_epochs": 8, "attacked_examples": 100, "attack_steps": 3},
        },
    },
)


class Guided(NamedTuple):
    """Training images, labels, and which pixels are flagged `[N, H, W]`."""

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def trainings_of(config: RefinementConfig) -> tuple[str, ...]:
    """The ways to train: without a guide, then with each."""
    return (STANDARD, ADVERSARIAL, *config.guides)


def guides_of(config: RefinementConfig, dataset: data.Dataset) -> tuple[str, ...]:
    """The guides of the configuration, the true mask only where the data set knows it.

    Raises:
      ConfigError: if none is left.
    """
    known = dataset.truth is not None and dataset.truth.mask is not None
    guides = tuple(guide for guide in config.guides if known or guide != MASK)
    if not guides:
        raise ConfigError(f"--guides={MASK}: expected a data set whose masks are known (shapes), got {dataset.name}")
    return guides


def with_recorded(config: RefinementConfig, arrays: experiment.Arrays) -> RefinementConfig:
    """The configuration with the guides that there were."""
    return replace(config, guides=tuple(arrays["guides"].tolist()))


@cache
def steps_of(network: nn.Module, attack_steps: int) -> dict[str, training.Step]:
    """The steps of standard, adversarial and guided training; the same values each time."""
    attack = attacks.pgd("linf", attacks.cross_entropy, attack_steps)
    return {
        STANDARD: training.classifier_step(network, attacks.no_attack),
        ADVERSARIAL: training.classifier_step(network, attack),
        GUIDED: training.classifier_step(network, attack, training.masked_gradient_penalty()),
    }


def flagged_of(values: jax.Array, share: float) -> jax.Array:
    """Pixels of a map `[H, W]` among the share of lowest value."""
    order = jnp.argsort(jnp.argsort(jnp.ravel(values)))
    return (order < share * values.size).reshape(values.shape)


def masks_of(run: Run, guide: str, network: nn.Module, own: Any, robust: Any, train: data.Split, key) -> np.ndarray:
    """Which pixels of each training image a guide flags, `[N, H, W]` bool."""
    config = run.config
    if guide == MASK:
        whole = trained.used(run, train).truth
        assert whole is not None
        assert whole.mask is not None
        known = jax.jit(jax.vmap(whole.mask))(jnp.asarray(train.labels), jnp.asarray(whole.train_codes))
        return np.asarray(known) < 0.5
    flag = explained(network, guide, config.lime_samples, config.flagged_share, config.chunk)
    return flag(own if guide == "lime" else robust, train.images, key)


@cache
def explained(network: nn.Module, guide: str, samples: int, share: float, chunk: int) -> Callable[..., np.ndarray]:
    """Compiles what LIME, or the gradient, flags of many images of one network."""
    attribution = gradients.lime(samples=samples) if guide == "lime" else gradients.gradient

    def of_image(_, variables, example):
        key, pixels = example
        return flagged_of(attribution(key, networks.logits_fn(network, variables), data.scale(pixels)), share)

    run = stacking.per_example(of_image, stacking.device_mesh(1, chunk), chunk)

    def flag(variables: Any, images: np.ndarray, key: jax.Array) -> np.ndarray:
        keys = jax.random.split(key, len(images))
        return np.asarray(run((), stacking.stack([variables]), (keys, images))[0])

    return flag


def fitted(
    run: Run, name: str, step: training.Step, states: training.TrainState, examples: Any, epochs: int, weight: float
):
    """Trains a stack on, from where it is, kept and continued under a name."""
    config, count = run.config, stacking.size(states)
    sizes = training.StepSizes(config.train_radius, config.train_step_size, config.learning_rate, weight)
    sizes = jax.tree.map(lambda number: jnp.full(count, number, jnp.float32), sizes)
    work = networks.intensity(trained.network_of(config, run.dataset), run.image_shape)
    names = [f"{name} {index}" for index in range(count)]
    plan = trained.Plan(name, step, states, sizes, names, config.batch_size, epochs, config.shuffle, work)
    states = trained.fit(run, plan, examples)
    runs.remove(run.workdir / "checkpoints" / name)
    return states


def variables_of(run: Run, train: data.Split, keys: np.ndarray) -> tuple[Any, experiment.Arrays]:
    """The variables of all trainings, seeds innermost, and what share of the marks each guide has flagged at first.

    Args:
      run: whose.
      train: the marked images.
      keys: whose mark each of them carries.
    """
    config, network = run.config, trained.network_of(run.config, run.dataset)
    steps, every = steps_of(network, config.attack_steps), config.standard_epochs + config.rounds * config.epochs
    seeds = range(config.network_seeds)

    @cache
    def base() -> training.TrainState:
        """Standard networks, from which all go on."""
        key = trained.key_of(config.seed, "classifiers")
        starts = [training.init_classifier(network, run.image_shape, jax.random.fold_in(key, seed)) for seed in seeds]
        return fitted(run, "base", steps[STANDARD], stacking.stack(starts), train, config.standard_epochs, 0.0)

    def again(some: Sequence[int]) -> training.TrainState:
        """Copies, since training gives its buffers away."""
        return jax.tree.map(jnp.copy, stacking.replicas(base(), some))

    def keep(name: str, names: Sequence[str], make: Callable[[], Any]) -> Any:
        numbers = ("epochs", "standard_epochs", "rounds", "train_radius", "train_step_size", "mark_agreement")
        settings = trained.settings_of(config, *numbers) | {"refined": name}
        with launch.patiently():
            return trained.kept(run, name, [{"network": one} for one in names], settings, make)

    def alike(name: str) -> Any:
        states = lambda: fitted(run, name, steps[name], again(seeds), train, every, 0.0).variables  # noqa: E731
        return keep(name, [Member(name, seed).name for seed in seeds], states)

    found = {name: alike(name) for name in (STANDARD, ADVERSARIAL)}
    flags: experiment.Arrays = {}
    for guide in config.guides:
        own, shares = [], []
        for seed in seeds:
            name, robust = Member(guide, seed).name, stacking.replica(found[ADVERSARIAL], seed)
            one = partial(refined, run, guide, seed, partial(again, [seed]), robust, train, keys)
            own.append(keep(name, [name], one))
            kept = runs.read_arrays(run.workdir / "analysis" / f"flagged-{name}.npz")
            shares.append(np.nan if kept is None else float(kept["share"]))
        found[guide], flags[f"flagged/{guide}"] = stacking.concatenate(own), np.array(shares)
    return stacking.concatenate(list(found.values())), flags


def refined(
    run: Run,
    guide: str,
    seed: int,
    start: Callable[[], training.TrainState],
    robust: Any,
    train: data.Split,
    keys: np.ndarray,
) -> Any:
    """A stack of one network, refined in rounds by a guide; what share of the marks the first flags is kept."""
    config, network = run.config, trained.network_of(run.config, run.dataset)
    step, states = steps_of(network, config.attack_steps)[GUIDED], start()
    for turn in range(config.rounds):
        key = trained.key_of(config.seed, f"{guide} {turn} seed {seed}")
        masks = masks_of(run, guide, network, stacking.replica(states.variables, 0), robust, train, key)
        if not turn:
            share = flagged_marks(masks, marks.places(run.image_shape, len(run.dataset.classes))[keys])
            runs.write_arrays(run.workdir / "analysis" / f"flagged-{guide} seed {seed}.npz", {"share": np.array(share)})
        label = f"{guide}, seed {seed}, round {turn + 1}"
        epochs = config.standard_epochs + (turn + 1) * config.epochs
        states = fitted(run, label, step, states, Guided(*train, masks), epochs, config.penalty)
    return states.variables


def flagged_marks(masks: np.ndarray, corners: np.ndarray) -> float:
    """Share of the marks' pixels, at corners `[N, 2]`, that masks `[N, H, W]` flag."""
    side = marks.SIDE
    pairs = zip(masks, corners, strict=True)
    return float(np.mean([mask[row : row + side, column : column + side].mean() for mask, (row, column) in pairs]))


def sets_of(config: RefinementConfig, dataset: data.Dataset) -> tuple[data.Split, np.ndarray, dict[str, data.Split]]:
    """The marked training images, whose marks they carry, and the test sets by name.

    The corrupted one holds the test images under every corruption in turn.
    """
    train, test = subsets(config, dataset)
    classes = len(dataset.classes)
    keys = marks.agreeing(train.labels, classes, config.mark_agreement, config.seed)
    shown = {"marked": marks.marked(test, classes, test.labels), "removed": test}
    shown["moved"] = marks.marked(test, classes, marks.misleading(test.labels, classes, config.seed))
    spoiled = []
    images = data.scale(jnp.asarray(test.images))
    for name, corrupt in corruptions.CORRUPTIONS.items():
        draws = jax.random.split(trained.key_of(config.seed, name), len(images))
        spoiled.append(np.asarray(jax.vmap(lambda key, image, of=corrupt: of(key, image, SEVERITY))(draws, images)))
    labels = np.tile(test.labels, len(spoiled))
    shown["corrupted"] = data.Split(np.clip(np.concatenate(spoiled), *data.PIXEL_RANGE), labels)
    return marks.marked(train, classes, keys), keys, shown


class Member(NamedTuple):
    """One network: how it was trained, and its seed."""

    training: str
    seed: int

    @property
    def name(self) -> str:
        """For instance `lime seed 0`."""
        return f"{self.training} seed {self.seed}"


def names_of(config: RefinementConfig) -> list[Member]:
    """All networks, seeds innermost."""
    return [Member(name, seed) for name in trainings_of(config) for seed in range(config.network_seeds)]


def measure(run: Run) -> experiment.Arrays:
    """Hits of every network on every test set, and under AutoAttack with the mark taken away."""
    run = run._replace(config=replace(run.config, guides=guides_of(run.config, run.dataset)))
    config = run.config
    train, keys, shown = sets_of(config, run.dataset)
    variables, flags = variables_of(run, train, keys)
    network = trained.network_of(config, run.dataset)
    mesh = stacking.device_mesh(stacking.size(variables), config.chunk)
    predict, key = training.evaluate(network, attacks.no_attack, mesh, chunk=config.chunk), jax.random.key(0)
    arrays = {f"hits/{name}": np.asarray(predict(variables, of, key)) == of.labels for name, of in shown.items()}
    found = evaluated.auto_attacked(run, names_of(config), variables, shown["removed"], "linf", (config.train_radius,))
    arrays |= {"hits/robust": found.pop("robust")[:, 0]} | {name: of for name, of in found.items() if "notes" in name}
    first = {name: of.images[:SHOWN] for name, of in shown.items()}
    images = {f"shown/{name}": np.asarray(data.scale(jnp.asarray(of)), np.float16) for name, of in first.items()}
    return arrays | flags | images | {"guides": np.array(config.guides)}


def rows_of(config: RefinementConfig, arrays: experiment.Arrays, name: str) -> dict[str, np.ndarray]:
    """Hits on one test set by training, `[seed, image]`; of the corrupted one the share of an image's corruptions."""
    hits, seeds = arrays[f"hits/{name}"] * 1.0, config.network_seeds
    if name == "corrupted":
        hits = hits.reshape(len(hits), len(corruptions.CORRUPTIONS), -1).mean(1)
    return {one: hits[index * seeds : (index + 1) * seeds] for index, one in enumerate(trainings_of(config))}


def tabulate(config: RefinementConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each training: accuracies on each test set, with intervals."""
    config, rows = with_recorded(config, arrays), []
    for name in trainings_of(config):
        row: Row = {"training": name, "network_seeds": config.network_seeds}
        for kind in (*SETS, "robust"):
            row |= claims.bounded(f"{kind}_accuracy", rows_of(config, arrays, kind)[name])
        row["mark_flagged"] = arrays[f"flagged/{name}"].mean() if f"flagged/{name}" in arrays else np.nan
        rows.append(row)
    return {"rows": rows, "notes": evaluated.notes_of(names_of(config), "linf", arrays)}


RISES = {
    "robust": "robust accuracy rises",
    "corrupted": f"accuracy under corruptions of severity {SEVERITY} rises",
    "removed": "accuracy without the mark rises",
    "moved": "accuracy with the mark moved rises",
}
# What the abstracts speak of, for LIME against standard training.
PUBLISHED = ("robust", "corrupted")


def claim(config: RefinementConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """What refinement by LIME gains over standard training, as published; what each guide gains over none, as fair."""
    del tables
    config = with_recorded(config, arrays)

    def compared(text: str, kind: str, guide: str, base: str, published: str, margin: float = 0.0) -> Row:
        values = rows_of(config, arrays, kind)
        gains = values[guide] - values[base]
        each = f", {len(corruptions.CORRUPTIONS)} corruptions each" if kind == "corrupted" else ""
        over = claims.spread(config.network_seeds, f"{gains.shape[1]} images{each}")
        text += "" if published != "-" else " (our test)"
        return claims.gain(claims.Claim(SECTION, text, guide, published, over), gains, margin)

    for guide in config.guides:
        for base in (STANDARD, ADVERSARIAL):
            for kind, text in RISES.items():
                theirs = guide == "lime" and base == STANDARD and kind in PUBLISHED
                yield compared(
                    f"refined, {text}, against {base} training", kind, guide, base, "rises" if theirs else "-"
                )
        text = "refined, clean accuracy without the mark pays less than 5 points, against standard training"
        yield compared(text, "removed", guide, STANDARD, "modest" if guide == "lime" else "-", margin=0.05)


def draw(workdir: Path, config: RefinementConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Accuracies with intervals, by test set; some images."""
    config = with_recorded(config, arrays)
    colours = figures.distinct(trainings_of(config))
    groups: dict[str, dict[str, list[figures.Interval]]] = {}
    for kind in (*SETS, "robust"):
        for row in tables["rows"]:
            value, low, high = (row[f"{kind}_accuracy{end}"] for end in ("", "_low", "_high"))
            groups.setdefault(HEADINGS[kind], {})[row["training"]] = [(value, low, high)]
    figures.intervals_figure(workdir / "refinement.svg", groups, {}, "accuracy", colours)
    figures.image_grid(workdir / "marks.svg", {HEADINGS[name]: arrays[f"shown/{name}"] for name in SETS})


HEADINGS = {
    "marked": "mark as in training",
    "removed": "mark removed",
    "moved": "mark moved",
    "corrupted": "corrupted",
    "robust": "under AutoAttack",
}


def estimated(config: RefinementConfig, dataset: data.Dataset, options: Options, others: Sequence) -> Iterator[Row]:
    """Stages of training, of which the adversarial one is measured; AutoAttack."""
    del others
    train, _, shown = sets_of(config, dataset)
    network, shape = trained.network_of(config, dataset), dataset.train.images.shape[1:]
    step = steps_of(network, config.attack_steps)[GUIDED]
    states = stacking.stack([training.init_classifier(network, shape, jax.random.key(0))])
    sizes = jax.tree.map(lambda one: jnp.full(1, one), training.StepSizes(0.1, 0.1, 1e-3, 1.0))
    epochs = config.standard_epochs + config.rounds * config.epochs
    work = networks.intensity(network, shape)
    plan = trained.Plan("guided", step, states, sizes, ["guided"], config.batch_size, epochs, config.shuffle, work)
    count = (len(guides_of(config, dataset)) + 2) * config.network_seeds
    examples = Guided(*train, np.zeros(train.images.shape[:3], bool))
    row = estimate.row_of(dataset.name, plan, examples, options, count)
    yield row | {"minutes": (row["steps"] * row["ms_per_step"] / 1000 * count + row["compile_seconds"]) / 60}
    flag = explained(network, "lime", config.lime_samples, config.flagged_share, config.chunk)
    variables, some = networks.init(network, jax.random.key(0), shape), train.images[: config.chunk]
    warm, cold = estimate.warm_and_cold(lambda: flag(variables, some, jax.random.key(0)))
    chunks = len(train.images) / len(some) * config.rounds * config.network_seeds
    named = estimate.empty(dataset.name, f"LIME of {len(train.images)} images") | {"compile_seconds": cold}
    yield named | {"networks": config.network_seeds, "minutes": (warm * chunks + cold) / 60}
    yield evaluated.estimated(config, dataset, shown["removed"], "linf", count)


EXPERIMENT = experiment.Experiment(
    name="refinement",
    title="Refinement guided by explanations, with a spurious mark",
    question="Does training that is guided by LIME, or by a better guide, make networks more robust, and right where a "
    "mark that gave the class away is gone or misleads? The fair comparison is adversarial training for as long.",
    config=RefinementConfig,
    presets=PRESETS,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "training": "training",
        **{
            f"{kind}_accuracy{end}": f"{HEADINGS[kind]}{what}"
            for kind in (*SETS, "robust")
            for end, what in (("", ""), ("_low", ", 95% from"), ("_high", ", to"))
        },
        "mark_flagged": "share of the marks flagged at first",
    },
    others={"notes": evaluated.NOTES},
    captions={
        "refinement.svg": "Accuracy with the mark as in training, without it, with another class's, under corruptions, "
        "and under AutoAttack; intervals are over seeds and images.",
        "marks.svg": "Test images with the mark as in training, without it, with another class's; and corrupted.",
    },
    estimate=estimated,
    paper_datasets=("cifar10",),
    takes="four minutes",
    picture="refinement.svg",
    dataset="shapes-16",
    neighbour=True,
)

if __name__ == "__main__":
    experiment.main(EXPERIMENT, __doc__)
