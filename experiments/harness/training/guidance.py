"""Training guided by explanations, in rounds: what a guide flags, and networks refined by it, kept in a run."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import launch
from experiments.harness.settings.config import recipe_of, steps_of
from experiments.harness.training import stages
from experiments.harness.training.origins import settings_of
from experiments.harness.training.stages import Run
from robgrad import data, gradients, networks, runs, stacking, training
from robgrad.data import marks

Arrays = dict[str, np.ndarray]
STANDARD, ADVERSARIAL, GUIDED, MASK = "standard", "adversarial", "guided", "true-mask"
GUIDES = ("lime", "robust-gradient", MASK)


class Guided(NamedTuple):
    """Training images, labels, and which pixels are flagged `[N, H, W]`."""

    images: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def trainings_of(config: Any) -> tuple[str, ...]:
    """The ways to train: without a guide, then with each."""
    return (STANDARD, ADVERSARIAL, *config.guides)


_MASKED = training.masked_gradient_penalty()


def epochs_of(config: Any) -> int:
    """Epochs of every network, in all its rounds."""
    return config.standard_epochs + config.rounds * config.epochs


def recipe_for(config: Any, name: str) -> training.Recipe:
    """How the networks of a training are trained."""
    return recipe_of(config, None if name == STANDARD else "linf")


def step_of(config: Any, network: nn.Module, name: str) -> training.Step:
    """The step of standard, adversarial or guided training."""
    objective = _MASKED if name == GUIDED else None
    return recipe_for(config, name).step(network, steps_of(config, epochs_of(config)), objective=objective)


def flagged_of(values: jax.Array, share: float) -> jax.Array:
    """Pixels of a map `[H, W]` among the share of lowest value."""
    order = jnp.argsort(jnp.argsort(jnp.ravel(values)))
    return (order < share * values.size).reshape(values.shape)


def masks_of(run: Run, guide: str, network: nn.Module, own: Any, robust: Any, train: data.Split, key) -> np.ndarray:
    """Which pixels of each training image a guide flags, `[N, H, W]` bool."""
    config = run.config
    if guide == MASK:
        whole = stages.used(run, train).truth
        assert whole is not None
        assert whole.mask is not None
        known = jax.jit(jax.vmap(whole.mask))(jnp.asarray(train.labels), jnp.asarray(whole.train_codes))
        return np.asarray(known) < 0.5
    flag = explained(network, guide, config.lime_samples, config.flagged_share, config.chunk)
    variables = own if guide == "lime" else robust
    if run.meter is None:
        return flag(variables, train.images, key)
    title = f"{guide.replace('-', ' ')} of {len(train.images)} images"
    few = run.meter.few(title, lambda some: flag(variables, some, key), train.images, config.chunk)
    return np.zeros((len(train.images), *few.shape[1:]), bool)


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
    run: Run,
    name: str,
    step: training.Step,
    states: training.TrainState,
    examples: Any,
    epochs: int,
    weight: float,
    guided: str = "",
):
    """Trains a stack on, from where it is, kept and continued under a name; `guided` is a guided network's own."""
    config, count = run.config, stacking.size(states)
    sizes = training.StepSizes(config.train_radius, config.train_step_size, config.learning_rate, weight)
    sizes = jax.tree.map(lambda number: jnp.full(count, number, jnp.float32), sizes)
    sizes = sizes._replace(weight_decay=stages.decays_of(config, count))
    score = stages.score_of(config, run.dataset, recipe_for(config, ADVERSARIAL), sizes)
    work = networks.intensity(stages.network_of(config, run.dataset), run.image_shape, config.attack_steps)
    names = [guided] if guided else [f"{name} {index}" for index in range(count)]
    plan = stages.Plan(
        name, step, states, sizes, names, config.batch_size, epochs, config.shuffle, work, score,
        "guided training" if guided else "",
    )  # fmt: skip
    states = stages.fit(run, plan, examples)
    runs.remove(run.workdir / "checkpoints" / name)
    return states


def trained_of(run: Run, train: data.Split, keys: np.ndarray) -> tuple[runs.Classifiers, Arrays]:
    """The networks of all trainings, seeds innermost, and what share of the marks each guide has flagged at first.

    Args:
      run: whose.
      train: the marked images.
      keys: whose mark each of them carries.
    """
    config, network = run.config, stages.network_of(run.config, run.dataset)
    every, seeds = epochs_of(config), range(config.network_seeds)

    @cache
    def base() -> training.TrainState:
        """Standard networks, from which all go on."""
        starts = stages.begun(config, run.dataset, recipe_for(config, STANDARD), every, seeds)
        step = step_of(config, network, STANDARD)
        return fitted(run, "base", step, starts, train, config.standard_epochs, 0.0)

    def again(some: Sequence[int]) -> training.TrainState:
        """Copies, since training gives its buffers away."""
        return jax.tree.map(jnp.copy, stacking.replicas(base(), some))

    def keep(name: str, names: Sequence[str], make: Callable[[], Any]) -> runs.Classifiers:
        numbers = ("epochs", "standard_epochs", "rounds", "train_radius", "train_step_size", "mark_agreement")
        settings = settings_of(config, *numbers) | {"refined": name}
        with launch.patiently():
            rows = [{"network": one} for one in names]
            return stages.kept(run, name, rows, settings, lambda: stages.Trained(make()))

    def alike(name: str) -> runs.Classifiers:
        step = step_of(config, network, name)
        make = lambda: training.kept(fitted(run, name, step, again(seeds), train, every, 0.0), config.keep)  # noqa: E731
        return keep(name, [Member(name, seed).name for seed in seeds], make)

    found = {name: alike(name) for name in (STANDARD, ADVERSARIAL)}
    flags: Arrays = {}
    for guide in config.guides:
        own, shares = [], []
        for seed in seeds:
            name, robust = Member(guide, seed).name, found[ADVERSARIAL].at(seed)
            one = partial(refined, run, guide, seed, partial(again, [seed]), robust, train, keys)
            own.append(keep(name, [name], one))
            kept = runs.read_arrays(run.workdir / "analysis" / f"flagged-{name}.npz")
            shares.append(np.nan if kept is None else float(kept["share"]))
        found[guide], flags[f"flagged/{guide}"] = runs.joined(own), np.array(shares)
    return runs.joined(list(found.values())), flags


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
    config, network = run.config, stages.network_of(run.config, run.dataset)
    step, states = step_of(config, network, GUIDED), start()
    for turn in range(config.rounds):
        key = stages.key_of(config.seed, f"{guide} {turn} seed {seed}")
        masks = masks_of(run, guide, network, stacking.replica(states.variables, 0), robust, train, key)
        if not turn:
            share = flagged_marks(masks, marks.places(run.image_shape, len(run.dataset.classes))[keys])
            runs.write_arrays(run.workdir / "analysis" / f"flagged-{guide} seed {seed}.npz", {"share": np.array(share)})
        label = f"{guide}, seed {seed}, round {turn + 1}"
        epochs = config.standard_epochs + (turn + 1) * config.epochs
        states = fitted(
            run, label, step, states, Guided(*train, masks), epochs, config.penalty, Member(guide, seed).name
        )
    return training.kept(states, config.keep)


def flagged_marks(masks: np.ndarray, corners: np.ndarray) -> float:
    """Share of the marks' pixels, at corners `[N, 2]`, that masks `[N, H, W]` flag."""
    side = marks.SIDE
    pairs = zip(masks, corners, strict=True)
    return float(np.mean([mask[row : row + side, column : column + side].mean() for mask, (row, column) in pairs]))


class Member(NamedTuple):
    """One network: how it was trained, and its seed."""

    training: str
    seed: int

    @property
    def name(self) -> str:
        """For instance `lime seed 0`."""
        return f"{self.training} seed {self.seed}"


def names_of(config: Any) -> list[Member]:
    """All networks, seeds innermost."""
    return [Member(name, seed) for name in trainings_of(config) for seed in range(config.network_seeds)]
