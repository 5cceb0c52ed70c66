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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import claims, estimate, evaluated, experiment, figures, launch, presets, trained
from experiments.harness.config import AttackedConfig, setting, subsets
from experiments.harness.options import Options
from experiments.harness.tables import Row
from experiments.harness.trained import Run
from robgrad import attacks, data, gradients, intervals, networks, runs, stacking, training
from robgrad.data import corruptions, marks

SECTION = "refinement"
STANDARD, ADVERSARIAL, GUIDED, MASK = "standard", "adversarial", "guided", "true-mask"
GUIDES = ("lime", "robust-gradient", MASK)
# Test sets by name: the mark where training had it, gone, that of another class; corrupted without it.
SETS = ("marked", "removed", "moved", "corrupted")
SEVERITY = 3
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class RefinementConfig(AttackedConfig):
    """Guides, rounds, and what a round does."""

    guides: tuple[str, ...] = setting(
        "What says which regions matter; true-mask where the data set knows it.", GUIDES, choices=lambda: GUIDES
    )
    rounds: int = setting("Rounds of explaining and training on.", 2)
    flagged_share: float = setting("Share of an image that is flagged, the least relevant.", 0.5, most=1.0)
    penalty: float = setting("Weight of the squared gradient on what is flagged.", 10.0, zero=True)
    lime_samples: int = setting("Evaluations of the network for each explanation of LIME.", 100)
    mark_agreement: float = setting("Share of training images whose mark tells their class.", 0.9, most=1.0)
    train_radius: float = setting("Radius of training and of AutoAttack, in l-inf.")
    train_step_size: float = setting("Step of PGD in training.")


_SETTINGS = {"network_seeds": 3, "norms": ("linf",), "train_losses": ("xent",)}
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
    """The guides of the configuration, the true mask only where the data set knows it."""
    known = dataset.truth is not None and dataset.truth.mask is not None
    return tuple(guide for guide in config.guides if known or guide != MASK)


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
    lime = gradients.lime(samples=config.lime_samples, output=gradients.outputs.probability_of_prediction)
    attribution, of = (lime, own) if guide == "lime" else (gradients.gradient, robust)
    return explained(network, attribution, config, guide)(of, train.images, key)


_compiled: dict[tuple, Any] = {}


def explained(network: nn.Module, attribution: gradients.Attribution, config: RefinementConfig, guide: str):
    """Compiles what an attribution flags of many images of one network; once for a guide and its settings."""
    named = (guide, network, config.lime_samples, config.flagged_share, config.chunk)
    if named not in _compiled:

        def of_image(_, variables, example):
            key, pixels = example
            values = attribution(key, networks.logits_fn(network, variables), data.scale(pixels))
            return flagged_of(values, config.flagged_share)

        _compiled[named] = stacking.per_example(of_image, stacking.device_mesh(1, config.chunk), config.chunk)
    run = _compiled[named]

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
    return trained.fit(run, plan, examples)


def variables_of(run: Run, train: data.Split) -> tuple[Any, experiment.Arrays]:
    """The variables of all trainings, seeds innermost, and what share of the marks each guide has flagged at first."""
    config, network = run.config, trained.network_of(run.config, run.dataset)
    steps, every = steps_of(network, config.attack_steps), config.standard_epochs + config.rounds * config.epochs

    @cache
    def base() -> training.TrainState:
        """Standard networks, from which all go on."""
        key = trained.key_of(config.seed, "classifiers")
        keys = [jax.random.fold_in(key, seed) for seed in range(config.network_seeds)]
        starts = stacking.stack([training.init_classifier(network, run.image_shape, one) for one in keys])
        return fitted(run, "base", steps[STANDARD], starts, train, config.standard_epochs, 0.0)

    def again(seeds: Sequence[int]) -> training.TrainState:
        """Copies, since training gives its buffers away."""
        return jax.tree.map(jnp.copy, stacking.replicas(base(), seeds))

    def keep(name: str, make) -> Any:
        rows = [{"network": one.name} for one in names_of(config) if one.training == name]
        settings = trained.training_settings(config, trained.Recipe()) | {"refined": name}
        with launch.patiently():
            return trained.kept(run, name, rows, settings, make)

    found = {
        name: keep(
            name,
            lambda name=name: (
                fitted(run, name, steps[name], again(range(config.network_seeds)), train, every, 0.0).variables
            ),
        )
        for name in (STANDARD, ADVERSARIAL)
    }
    flags: experiment.Arrays = {}
    for guide in config.guides:
        path = run.workdir / "analysis" / f"flagged-{guide}.npz"

        def refine(guide: str = guide, path: Path = path) -> Any:
            done = [
                refined(run, guide, again([seed]), stacking.replica(found[ADVERSARIAL], seed), train, seed)
                for seed in range(config.network_seeds)
            ]
            runs.write_arrays(path, {"shares": np.array([share for _, share in done])})
            return stacking.stack([variables for variables, _ in done])

        found[guide] = keep(guide, refine)
        shares = runs.read_arrays(path)
        flags[f"flagged/{guide}"] = np.full(config.network_seeds, np.nan) if shares is None else shares["shares"]
    return stacking.concatenate(list(found.values())), flags


def refined(
    run: Run, guide: str, states: training.TrainState, robust: Any, train: data.Split, seed: int
) -> tuple[Any, float]:
    """One network refined in rounds by a guide: its variables, and the share of the marks flagged in the first."""
    config, network = run.config, trained.network_of(run.config, run.dataset)
    step, shares = steps_of(network, config.attack_steps)[GUIDED], []
    corners = marks.places(run.image_shape, len(run.dataset.classes))[train.labels]
    for turn in range(config.rounds):
        key = trained.key_of(config.seed, f"{guide} {turn}")
        masks = masks_of(run, guide, network, stacking.replica(states.variables, 0), robust, train, key)
        shares.append(np.mean([mask[r : r + 2, c : c + 2].mean() for mask, (r, c) in zip(masks, corners, strict=True)]))
        label = f"{guide}, seed {seed}, round {turn + 1}"
        epochs = config.standard_epochs + (turn + 1) * config.epochs
        states = fitted(run, label, step, states, Guided(*train, masks), epochs, config.penalty)
    return stacking.replica(states.variables, 0), float(shares[0])


def sets_of(config: RefinementConfig, dataset: data.Dataset) -> tuple[data.Split, dict[str, data.Split]]:
    """The marked training images, and the test sets by name; the corrupted one holds every corruption in turn."""
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
    return marks.marked(train, classes, keys), shown


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
    train, shown = sets_of(config, run.dataset)
    variables, flags = variables_of(run, train)
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
    """Hits on one test set by training, `[seed, image]`."""
    hits, seeds = arrays[f"hits/{name}"] * 1.0, config.network_seeds
    return {one: hits[index * seeds : (index + 1) * seeds] for index, one in enumerate(trainings_of(config))}


def tabulate(config: RefinementConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each training: accuracies on each test set, with intervals."""
    config, rows = with_recorded(config, arrays), []
    for name in trainings_of(config):
        row: Row = {"training": name, "network_seeds": config.network_seeds}
        for kind in (*SETS, "robust"):
            found = intervals.of_seeds_and_rows(rows_of(config, arrays, kind)[name], intervals.mean)
            ends = (f"{kind}_accuracy", f"{kind}_accuracy_low", f"{kind}_accuracy_high")
            row |= dict(zip(ends, map(float, found), strict=True))
        row["mark_flagged"] = arrays[f"flagged/{name}"].mean() if f"flagged/{name}" in arrays else np.nan
        rows.append(row)
    return {"rows": rows, "notes": evaluated.notes_of(names_of(config), "linf", arrays)}


_PUBLISHED = {
    "robust": "robust accuracy rises",
    "removed": "accuracy without the mark rises",
    "moved": "accuracy with the mark moved rises",
    "corrupted": f"accuracy under corruptions of severity {SEVERITY} rises",
}


def claim(config: RefinementConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """What refinement by LIME gains over standard training, as published; what each guide gains over none, as fair."""
    del tables
    config = with_recorded(config, arrays)
    for guide in config.guides:
        for base, theirs in ((STANDARD, guide == "lime"), (ADVERSARIAL, False)):
            for kind, text in _PUBLISHED.items():
                values = rows_of(config, arrays, kind)
                gains = values[guide] - values[base]
                over = claims.spread(config.network_seeds, f"{gains.shape[1]} images")
                against = f"refined, {text}, against {base} training" + ("" if theirs else " (our test)")
                one = claims.Claim(SECTION, against, guide, "rises" if theirs else "-", over)
                value, low, high = map(float, intervals.of_seeds_and_rows(gains, intervals.mean))
                yield claims.row(one, f"{value:+.3f}", low, high, claims.verdict(low, high))
        values = rows_of(config, arrays, "marked")
        loss = values[guide] - values[STANDARD]
        over = claims.spread(config.network_seeds, f"{loss.shape[1]} images")
        text = "clean accuracy pays little: less than 5 points with the mark as in training"
        one = claims.Claim(SECTION, text, guide, "modest" if guide == "lime" else "-", over)
        value, low, high = map(float, intervals.of_seeds_and_rows(loss, intervals.mean))
        yield claims.row(one, f"{value:+.3f}", low, high, claims.verdict(low + 0.05, high + 0.05))


def draw(workdir: Path, config: RefinementConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Accuracies with intervals, by test set; some images."""
    config = with_recorded(config, arrays)
    colours: Any = {name: f"C{index}" for index, name in enumerate(trainings_of(config))}
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
    train, shown = sets_of(config, dataset)
    network, shape = trained.network_of(config, dataset), dataset.train.images.shape[1:]
    step = steps_of(network, config.attack_steps)[GUIDED]
    states = stacking.stack([training.init_classifier(network, shape, jax.random.key(0))])
    sizes = jax.tree.map(lambda one: jnp.full(1, one), training.StepSizes(0.1, 0.1, 1e-3, 1.0))
    epochs = config.rounds * config.epochs
    work = networks.intensity(network, shape)
    plan = trained.Plan("guided", step, states, sizes, ["guided"], config.batch_size, epochs, config.shuffle, work)
    count = (len(guides_of(config, dataset)) + 2) * config.network_seeds
    examples = Guided(*train, np.zeros(train.images.shape[:3], bool))
    row = estimate.row_of(dataset.name, plan, examples, options, count)
    yield row | {"minutes": row["minutes"] * count}
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
    takes="four minutes",
    picture="refinement.svg",
    dataset="shapes-16",
    neighbour=True,
)

if __name__ == "__main__":
    experiment.main(EXPERIMENT, __doc__)
