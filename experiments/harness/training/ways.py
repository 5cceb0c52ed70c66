"""Ways to train as stacks over strengths and seeds: what they are, trained and kept in a run, and timed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.harness import launch
from experiments.harness.progress import counted
from experiments.harness.settings.config import recipe_of, steps_of
from experiments.harness.training import stages
from experiments.harness.training.meter import cost_of
from experiments.harness.training.origins import settings_of
from experiments.harness.training.stages import Run
from robgrad import data, networks, runs, training

REFERENCE = "pgd"
# How far clean accuracies on held-out images may lie below PGD training's and be called equal.
EQUAL = 0.01
# Rounds of timing a few steps of every way.
TIMINGS = 3


class Way(NamedTuple):
    """A way to train: its objective, and the strengths tried, from weak to strong: shares of the radius, or weights."""

    objective: str
    weights: tuple[float, ...] = ()
    shares: tuple[float, ...] = (1.0,)

    @property
    def strengths(self) -> list[tuple[float, float]]:
        """Share of the radius and weight of each network."""
        return [(share, weight) for share in self.shares for weight in (self.weights or (0.0,))]


WAYS: Mapping[str, Way] = {
    "standard": Way("adversarial", shares=(0.0,)),
    REFERENCE: Way("adversarial", shares=(0.75, 1.0, 1.25)),
    "single-step": Way("single-step", shares=(0.5, 0.75, 1.0)),
    "n-fgsm": Way("n-fgsm", shares=(0.5, 0.75, 1.0)),
    "free": Way("free", shares=(0.5, 0.75, 1.0)),
    "trades": Way("trades", (1.0, 3.0, 6.0)),
    "mart": Way("mart", (1.0, 3.0, 5.0)),
    "awp": Way("awp", shares=(0.75, 1.0, 1.25)),
    "gradient-penalty": Way("gradient-penalty", (0.25, 0.5, 1.0)),
    "cure": Way("cure", (0.1, 0.3, 1.0)),
    "grad-align": Way("grad-align", (0.2,), (0.5, 0.75, 1.0)),
    "llr": Way("llr", (0.5, 1.0, 2.0)),
    "scorpio-1": Way("scorpio-1", (0.25, 0.5, 1.0)),
    "scorpio-5": Way("scorpio-5", (0.25, 0.5, 1.0)),
    "scorpio-5-differences": Way("scorpio-5-differences", (0.25, 0.5, 1.0)),
}


class Member(NamedTuple):
    """One network: the way it was trained, the place of its strength among the way's, and its seed."""

    way: str
    strength: int
    seed: int

    @property
    def name(self) -> str:
        """For instance `cure 1 seed 0`."""
        return f"{self.way} {strength_of(self.way, self.strength)} seed {self.seed}"


def strength_of(way: str, place: int) -> str:
    """What a strength is called: its weight, or its share of the radius."""
    share, weight = WAYS[way].strengths[place]
    return f"weight {weight:g}" if len(WAYS[way].weights) > 1 else f"radius {share:g}"


def members_of(config: Any) -> list[Member]:
    """All networks, seeds innermost."""
    return [
        Member(way, strength, seed)
        for way in config.ways
        for strength in range(len(WAYS[way].strengths))
        for seed in range(config.network_seeds)
    ]


def plan_of(config: Any, way: str, dataset: data.Dataset) -> stages.Plan:
    """All networks of one way as a stack."""
    network, shape = stages.network_of(config, dataset), dataset.train.images.shape[1:]
    members = [one for one in members_of(config) if one.way == way]
    shares, weights = np.transpose([WAYS[way].strengths[one.strength] for one in members])
    kind = training.OBJECTIVES[WAYS[way].objective]
    radii = jnp.asarray(config.train_radius * shares, jnp.float32)
    sizes = training.StepSizes(
        radii,
        jnp.full(len(members), config.train_step_size) if kind.step is None else kind.step * radii,
        jnp.full(len(members), config.learning_rate),
        jnp.asarray(weights, jnp.float32),
        stages.decays_of(config, len(members)),
    )
    names = [one.name for one in members]
    recipe = recipe_of(config, "linf", objective=WAYS[way].objective) if shares.any() else recipe_of(config, None)
    epochs = config.epochs if shares.any() else config.standard_epochs
    work = networks.intensity(network, shape, recipe.passes)
    states = stages.begun(config, dataset, recipe, epochs, [one.seed for one in members])
    step = recipe.step(network, steps_of(config, epochs))
    return stages.Plan(
        way, step, states, sizes, names, config.batch_size, epochs, config.shuffle, work,
        stages.score_of(config, dataset, recipe, sizes),
    )  # fmt: skip


def trained_way(run: Run, way: str, train: data.Split) -> runs.Classifiers:
    """A way's networks, trained, continued or loaded."""
    rows = [{"network": one.name} for one in members_of(run.config) if one.way == way]
    named = ("attack_steps", "train_attack", "epochs", "standard_epochs", "train_radius", "train_step_size")
    settings = settings_of(run.config, *named) | {"objective": WAYS[way].objective}

    def make() -> stages.Trained:
        plan = plan_of(run.config, way, run.dataset)
        return stages.ended(stages.fit(run, plan, train), plan.names, run.config.keep)

    with launch.patiently():
        return stages.kept(run, way, rows, settings, make)


def chosen_of(config: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Of each way the places of the networks, one a seed, that are compared: see `taken_of`."""
    taken, members = taken_of(config, arrays["held_hits"]), members_of(config)
    return {way: [place for place, one in enumerate(members) if one[:2] == (way, taken[way][0])] for way in config.ways}


def taken_of(config: Any, held: np.ndarray) -> dict[str, tuple[int, bool]]:
    """Of each way the strength that is compared, and whether its clean accuracy equals PGD training's.

    That is the strongest whose hits on images held out are at most a point short of those of PGD training at the whole
    radius; where there is none, the one with the most hits.
    """
    members = members_of(config)

    def hits(way: str, strength: int) -> int:
        return int(held[[place for place, one in enumerate(members) if one[:2] == (way, strength)]].sum())

    whole = WAYS[REFERENCE].shares.index(1.0)
    each = config.network_seeds * held.shape[1]
    wanted = hits(REFERENCE, whole) - EQUAL * each if REFERENCE in config.ways else 0.0
    taken = {}
    for way in config.ways:
        found = [hits(way, strength) for strength in range(len(WAYS[way].strengths))]
        equal = [strength for strength, count in enumerate(found) if count >= wanted]
        taken[way] = (
            (whole, True) if way == REFERENCE else (max(equal), True) if equal else (int(np.argmax(found)), False)
        )
    return taken


def places_of(config: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """Of each way the places of its chosen networks among the chosen."""
    places, first = {}, 0
    for way, members in chosen_of(config, arrays).items():
        places[way] = list(range(first, first + len(members)))
        first += len(members)
    return places


def seconds_of(run: Run, train: data.Split) -> np.ndarray:
    """Seconds of a step and network `[way, round]`: ways take turns, so that a machine's drift meets all alike."""
    path, ways = run.workdir / "analysis" / "seconds.npz", run.config.ways
    if run.meter:
        return np.ones((len(ways), TIMINGS))
    kept = runs.read_arrays(path)
    if kept is None:
        spent = np.zeros((len(ways), TIMINGS))
        for place, _ in counted(range(TIMINGS * len(ways)), f"timing {len(ways)} ways to train"):
            turn, index = divmod(place, len(ways))
            plan = plan_of(run.config, ways[index], run.dataset)
            spent[index, turn] = cost_of(plan, train, run.options, seconds=0.7)[0].step / len(plan.names)
        kept = {"seconds": spent}
        runs.write_arrays(path, kept)
    return kept["seconds"]
