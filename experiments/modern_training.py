r"""Training as it is done today, and what each of its parts pays: all parts, and each left out in turn.

SGD with momentum, weight decay, a schedule of the learning rate, augmented images, averaged weights, and the epoch that
is most robust on images held out in place of the last (Rice, Wong and Kolter, 2020): each recipe is trained with
several seeds, and both its best and its last epoch are put under AutoAttack.

    python -m experiments.modern_training                                  # digits, minutes on 2 cores
    python -m experiments.modern_training --dataset=cifar10                # a small WideResNet, an hour
    python -m experiments.modern_training --dataset=cifar10 --preset=modern --without=augmentation    # a GPU
    python -m experiments.manifold_distance --dataset=cifar10 --preset=modern    # the paper's question, of these

Expected of PreActResNet-18 with `--preset=modern` (l2, 0.5 in [0, 1]), as RobustBench has Rice's: 88.67% clean, and
67.68% under AutoAttack. What the parts pay at the size of two cores was not published.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.harness import experiment, launch, running
from experiments.harness.measurement import evaluation
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of
from experiments.harness.settings.config import (
    AutoAttackConfig,
    ConfigError,
    FittedConfig,
    recipe_of,
    setting,
    steps_of,
    subsets,
)
from experiments.harness.training import stages
from experiments.harness.training.origins import settings_of
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import attacks, data, networks, runs, stacking, training

SECTION = "today's training"
WHOLE = "all parts"
# What is set where a part is left out.
_NO_SGD: dict[str, Any] = {"optimizer": "adam", "learning_rate": 1e-3}
_CONSTANT: dict[str, Any] = {"schedule": "constant"}
_NO_DECAY: dict[str, Any] = {"weight_decay": 0.0}
_NO_AVERAGE: dict[str, Any] = {"average": 0.0, "average_from": 0.0}
_NO_AUGMENTATION: dict[str, Any] = {"augmentation": ()}
PARTS: Mapping[str, Mapping[str, Any]] = {
    "augmentation": _NO_AUGMENTATION,
    "schedule": _CONSTANT,
    "weight-decay": _NO_DECAY,
    "averaging": _NO_AVERAGE,
    "sgd": _NO_SGD,
    "all": _NO_SGD | _CONSTANT | _NO_DECAY | _NO_AVERAGE | _NO_AUGMENTATION,
}
KEPT = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class ModernConfig(FittedConfig, AutoAttackConfig):
    """One recipe, the parts that are left out of it in turn, and the ball of training and of AutoAttack."""

    needs_held_out: ClassVar[bool] = True

    without: tuple[str, ...] = setting(
        "Parts that are left out in turn; sgd puts Adam in its place, all leaves plain Adam.",
        tuple(PARTS),
        choices=lambda: tuple(PARTS),
    )
    norm: str = setting("Norm of training and of AutoAttack.", "linf", choices=lambda: tuple(attacks.NORMS))
    train_radius: float = setting("Radius of training and of AutoAttack; pixels run from -1 to 1.")
    train_step_size: float = setting("Step of PGD in training.")

    def __post_init__(self):
        """Refuses to keep the last epoch alone."""
        if self.keep != "best":
            raise ConfigError("--keep=last: here both the last epoch and the best are judged; leave it out")


class Member(NamedTuple):
    """One network: its recipe, its seed, and which of its epochs it is."""

    recipe: str
    seed: int
    kept: str

    @property
    def name(self) -> str:
        """For instance `without schedule seed 0 best`."""
        return f"{self.recipe} seed {self.seed} {self.kept}"


def recipes_of(config: ModernConfig) -> dict[str, ModernConfig]:
    """The configuration of each recipe by its name; a part that there is nothing of leaves none."""
    found = {WHOLE: config}
    for part in config.without:
        other = replace(config, **PARTS[part])
        if other not in found.values():
            found["plain Adam" if part == "all" else f"without {part}"] = other
    return found


def members_of(config: ModernConfig) -> list[Member]:
    """All networks: of each recipe the last epochs of every seed, then the best."""
    return [
        Member(recipe, seed, kept)
        for recipe in recipes_of(config)
        for kept in KEPT
        for seed in range(config.network_seeds)
    ]


def plan_of(config: ModernConfig, recipe: str, dataset: data.Dataset) -> stages.Plan:
    """The networks of one recipe as a stack."""
    own, count = recipes_of(config)[recipe], config.network_seeds
    network, how = stages.network_of(own, dataset), recipe_of(own, own.norm)
    numbers = (own.train_radius, own.train_step_size, own.learning_rate, 0.0)
    sizes = training.StepSizes(*(jnp.full(count, number, jnp.float32) for number in numbers))
    sizes = sizes._replace(weight_decay=stages.decays_of(own, count))
    states = stages.begun(own, dataset, how, own.epochs, range(count))
    return stages.Plan(
        recipe, how.step(network, steps_of(own, own.epochs)), states, sizes,
        [f"{recipe} seed {seed}" for seed in range(count)], own.batch_size, own.epochs, own.shuffle,
        networks.intensity(network, dataset.train.images.shape[1:], how.passes),
        stages.score_of(own, dataset, how, sizes),
    )  # fmt: skip


def trained_by(run: Run, recipe: str, train: data.Split) -> runs.Classifiers:
    """A recipe's networks: the last epoch of every seed, then the best."""
    own = recipes_of(run.config)[recipe]
    rows = [{"network": one.name} for one in members_of(run.config) if one.recipe == recipe]
    named = ("attack_steps", "train_attack", "epochs", "train_radius", "train_step_size", "norm")
    # The curve stands with the best epochs.
    best = [row["network"] for row in rows][own.network_seeds :]

    def make() -> stages.Trained:
        states = stages.fit(run, plan_of(run.config, recipe, run.dataset), train)
        last, made = stages.ended(states, [], "last"), stages.ended(states, best, "best")
        return made._replace(variables=stacking.concatenate([last.variables, made.variables]))

    with launch.patiently():
        return stages.kept(run, recipe.replace(" ", "-"), rows, settings_of(own, *named), make)


def measure(run: Run) -> experiment.Arrays:
    """Whether each network is right on each test image `test_hits`, and under AutoAttack `robust_hits`."""
    config = run.config
    train, test = subsets(config, run.dataset)
    trained = runs.joined([trained_by(run, recipe, train) for recipe in recipes_of(config)])
    hits = evaluation.hits(run, trained, test, stages.key_of(config.seed, "modern"))
    found = evaluation.auto_attacked(run, trained, test, config.norm, (config.train_radius,))
    notes = {name: values for name, values in found.items() if "notes" in name}
    return {"test_hits": hits, "robust_hits": found["robust"][:, 0], **notes}


def hits_of(config: ModernConfig, arrays: experiment.Arrays, field: str, recipe: str, kept: str) -> np.ndarray:
    """Hits of one recipe's networks `[seed, image]`."""
    places = [place for place, one in enumerate(members_of(config)) if (one.recipe, one.kept) == (recipe, kept)]
    return arrays[field][places]


def tabulate(config: ModernConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """A row for each recipe and kept epoch."""
    rows = []
    for recipe in recipes_of(config):
        curves = [arrays[f"{stages.HELD_OUT}/{recipe} seed {seed} best"] for seed in range(config.network_seeds)]
        for kept in KEPT:
            epochs = [int(np.argmax(curve)) + 1 if kept == "best" else len(curve) for curve in curves]
            row: Row = {"recipe": recipe, "kept": kept, "epoch": float(np.mean(epochs))}
            row |= claims.bounded("test_accuracy", hits_of(config, arrays, "test_hits", recipe, kept))
            row |= claims.bounded("robust_accuracy", hits_of(config, arrays, "robust_hits", recipe, kept))
            rows.append(row | {"network_seeds": config.network_seeds})
    return {"rows": rows, "notes": evaluation.notes_of(members_of(config), config.norm, arrays)}


def claim(config: ModernConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """That each part pays, and the best epoch."""
    del tables

    def compared(text: str, group: str, one: tuple[str, str], other: tuple[str, str]) -> Row:
        robust = [hits_of(config, arrays, "robust_hits", *which) * 1.0 for which in (one, other)]
        over = claims.Over(config.network_seeds, f"{robust[0].shape[1]} images, AutoAttack {config.auto_attack}")
        return claims.gain(claims.Claim(SECTION, text, group, "-", over), robust[0] - robust[1])

    for recipe in recipes_of(config):
        if recipe != WHOLE:
            text = "each part of today's training pays: leaving it out costs robust accuracy (our test)"
            yield compared(text, recipe, (WHOLE, "best"), (recipe, "best"))
    for recipe in recipes_of(config):
        text = "the epoch that is most robust on images held out is more robust than the last (our test)"
        yield compared(text, recipe, (recipe, "best"), (recipe, "last"))


def draw(workdir: Path, config: ModernConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """Robust accuracies with intervals, clean accuracies as marks."""
    del arrays
    groups = {
        f"{kept} epoch": {
            row["recipe"]: [interval_of(row, "robust_accuracy"), interval_of(row, "test_accuracy")]
            for row in tables["rows"]
            if row["kept"] == kept
        }
        for kept in reversed(KEPT)
    }
    label = f"accuracy under AutoAttack {config.auto_attack}, {config.norm} {config.train_radius:.3g}"
    colours = figures.distinct([*recipes_of(config)])
    figures.intervals_figure(workdir / "recipes.svg", groups, {}, label, colours, ("robust", "clean"))


EXPERIMENT = experiment.Experiment(
    name="modern_training",
    title="Training as it is done today, and what each part pays",
    question="Which parts of a robust network's training pay: augmentation, schedule, weight decay, averaged weights, "
    "SGD, the best epoch? Each is left out in turn, and what is left is put under AutoAttack.",
    config=ModernConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "recipe": "recipe",
        "kept": "epoch kept",
        "epoch": "its number",
        **{"robust_accuracy": "robust accuracy", "test_accuracy": "test accuracy"},
    },
    others={"notes": evaluation.NOTES},
    captions={
        "recipes.svg": "Robust accuracy of each recipe at its best and its last epoch; marks are clean accuracy.",
    },
    takes="five minutes",
    picture="recipes.svg",
    alone=True,
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
