"""The networks and the manifold of a run: each trained once, kept in the run, continued or loaded.

What has finished lies in the run directory's `networks` and is loaded; what is under way goes on from its last
checkpoint; with a source, what another run has trained in the same way is taken from there.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.harness import launch
from experiments.harness.progress import progress
from experiments.harness.settings.config import FittedConfig, TrainingConfig, losses_of, recipe_of, steps_of
from experiments.harness.settings.options import Options
from experiments.harness.training.meter import Meter
from experiments.harness.training.origins import (
    Source,
    equal,
    manifold_settings,
    stage_of,
    taken,
    training_settings,
)
from experiments.harness.training.specs import Spec, stacks_of
from robgrad import attacks, data, gradients, manifolds, networks, runs, stacking, training

# What is kept of networks whose best epoch was looked for.
HELD_OUT = "held_out"


def key_of(seed: int, name: str) -> jax.Array:
    """A random key that depends on the seed and a name alone, not on what else a run does."""
    return gradients.key_named(jax.random.key(seed), name)


class Run(NamedTuple):
    """One run of an experiment: where, on what, with which settings, and how it is carried out."""

    workdir: Path
    config: Any
    options: Options
    dataset: data.Dataset
    source: Source | None = None
    # In place of its stages, where what they would take is asked.
    meter: Meter | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`[H, W, C]`."""
        return self.dataset.train.images.shape[1:]


class Trained(NamedTuple):
    """What a training ends with: stacked variables, and the accuracy on images held out after each epoch, by name."""

    variables: Any
    curves: Mapping[str, Sequence[float]] = {}


def ended(states: training.TrainState, names: Sequence[str], keep: str) -> Trained:
    """What is kept of states, `last` or `best`, of networks with these names."""
    curves = [] if states.best is None else np.asarray(states.best.curve, float).tolist()
    return Trained(training.kept(states, keep), dict(zip(names, curves, strict=False)))


class Plan(NamedTuple):
    """A stage of training: the step, the stack it starts from, and what `training.fit` is told.

    Stages with one `title` take as long a network, see `meter.Meter`; `retrains` where its networks are retrainings.
    """

    name: str
    step: training.Step
    states: training.TrainState
    numbers: Any
    names: Sequence[str]
    batch_size: int
    epochs: int
    shuffle: bool
    intensity: float
    score: Callable[[Any], Any] | None = None
    title: str = ""
    retrains: bool = False

    def options(self, options: Options) -> dict[str, Any]:
        """Keyword arguments of `training.fit`."""
        mesh = stacking.device_mesh(len(self.names), self.batch_size, intensity=self.intensity)
        wanted = {name: getattr(self, name) for name in ("batch_size", "epochs", "shuffle", "names", "score")}
        return wanted | {"mesh": mesh, "shard_data": options.shard_data}


def network_of(config: FittedConfig, dataset: data.Dataset) -> nn.Module:
    """The architecture of a run's classifiers."""
    return networks.network_named(config.network, dataset.train.images.shape[1:], len(dataset.classes))


def mesh_in_words(config: FittedConfig, dataset: data.Dataset) -> str:
    """What `stacking.device_mesh` makes of adversarial training of a run's classifiers."""
    shape = dataset.train.images.shape[1:]
    work = config.batch_size * networks.intensity(network_of(config, dataset), shape, config.attack_steps)
    split = "split" if stacking.splits_batches(1, work) else "not split"
    counted = f"{work:.3g} operations for each parameter, {stacking.INTENSE} are enough"
    return f"batches of adversarial training {split} over host devices: {counted}"


def train_networks(run: Run, specs: Sequence[Spec], train: data.Split) -> runs.Classifiers:
    """Trains, continues or loads the networks, a stack for each norm and loss."""
    stacks = []
    for members in stacks_of(specs):
        with launch.patiently():
            stacks.append(_stack(run, members, train))
    return runs.joined(stacks)


def _stack(run: Run, members: list[Spec], train: data.Split) -> runs.Classifiers:
    """One stack, loaded, or made and kept."""
    rows = [{**spec.row, "network": spec.name, "network_seed": spec.seed} for spec in members]
    settings = training_settings(run.config, members[0])
    return kept(run, members[0].stack, rows, settings, lambda: _completed(run, members, train))


def kept(
    run: Run, name: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], make: Callable[[], Trained]
) -> runs.Classifiers:
    """A finished stack of classifiers, loaded from the run, or made and kept there.

    Args:
      run: whose.
      name: of the stack.
      rows: what is known of each network, `network` its name.
      settings: what training depended on.
      make: trains them.
    """
    if run.meter:
        make()
        return _untrained(run, [row["network"] for row in rows])
    path = run.workdir / "networks" / name
    stack = runs.finished(path, runs.load_classifiers)
    if stack is not None:
        return stack
    variables, curves = make()
    about = {
        "kind": "classifier",
        "network": run.config.network,
        "image_shape": list(run.image_shape),
        "classes": len(run.dataset.classes),
        "networks": [{**row, **_curve(curves.get(row["network"]))} for row in rows],
        "training": settings,
    }
    runs.save_stack(path, variables, about)
    runs.remove(run.workdir / "checkpoints" / name)
    # Read back: a program that is compiled for arrays as training leaves them may round otherwise than for those that a
    # continued run has.
    return runs.load_classifiers(path)


def _untrained(run: Run, names: Sequence[str]) -> runs.Classifiers:
    """Networks as they start, in place of trained ones."""
    network = network_of(run.config, run.dataset)
    one = networks.init(network, jax.random.key(0), run.image_shape)
    return runs.Classifiers(network, stacking.stack([one] * len(names)), tuple(names))


def per_example(
    run: Run, trained: runs.Classifiers, function: Callable[[Any, Any, Any], Any], examples: Any, shared: Any = ()
) -> Any:
    """`function(shared, variables, example)` of every network and example, as arrays `[network, example, ...]`."""

    def of(trained: runs.Classifiers) -> Callable[[Any], Any]:
        mapped = stacking.per_example(function, mesh_of(run.config, trained, run.image_shape), run.config.chunk)
        return lambda examples: jax.device_get(mapped(shared, trained.variables, examples))

    return of_networks(run, "gradients and maps", trained, of, examples)


def of_networks(
    run: Run, title: str, trained: runs.Classifiers, of: Callable[[runs.Classifiers], Callable], examples: Any
) -> Any:
    """`of(trained)(examples)`; of one network and a few of the examples where the run has a meter."""
    if run.meter is None:
        return of(trained)(examples)
    count = len(trained.names)
    found = run.meter.few(title, of(trained.take([0])), examples, run.config.chunk, count)
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape[1:])), found)


def mesh_of(config: Any, trained: runs.Classifiers, image_shape: Sequence[int]) -> Mesh:
    """How networks and examples are laid over devices where networks are evaluated."""
    work = networks.intensity(trained.network, tuple(image_shape))
    return stacking.device_mesh(len(trained.names), config.chunk, intensity=work)


def _curve(curve: Sequence[float] | None) -> dict[str, Sequence[float]]:
    return {} if curve is None else {HELD_OUT: curve}


def curves_of(workdir: Path) -> dict[str, np.ndarray]:
    """The accuracy on images held out after each epoch of a run's networks, `held_out/NETWORK`, where it was taken."""
    if not (workdir / "networks").is_dir():
        return {}
    abouts = [runs.read_about(path) for path in runs.stages(workdir)]
    rows = [row for about in abouts for row in about.get("networks", ())]
    return {f"{HELD_OUT}/{row['network']}": np.array(row[HELD_OUT]) for row in rows if HELD_OUT in row}


def _completed(run: Run, members: list[Spec], train: data.Split) -> Trained:
    """One stack, from another run as far as that has its networks, the rest trained."""
    parts: list[Any] = []
    names: list[str] = []
    curves: dict[str, Sequence[float]] = {}
    other = taken(run.config, members[0], run.source)
    if other is not None:
        parts, names = [other.variables], list(other.names)
        curves = {row["network"]: row[HELD_OUT] for row in other.about["networks"] if HELD_OUT in row}
    missing = [spec for spec in members if spec.name not in names]
    if run.meter:
        settings = [(spec, training_settings(run.config, spec)) for spec in missing]
        missing = [spec for spec, of in settings if run.meter.begins(run.dataset.name, spec.name, str(of))]
    if missing:
        plan = classifiers_plan(run.config, missing, run.dataset)
        made = ended(fit(run, plan, train), plan.names, run.config.keep)
        parts.append(made.variables)
        names += plan.names
        curves |= made.curves
    if run.meter:
        return Trained(())
    chosen = stacking.replicas(stacking.concatenate(parts), [names.index(spec.name) for spec in members])
    return Trained(chosen, curves)


def begun(
    config: FittedConfig, dataset: data.Dataset, recipe: training.Recipe, epochs: int, seeds: Sequence[int]
) -> training.TrainState:
    """A stack of fresh classifiers by their seeds; those of one seed start alike and see the data in one order."""
    network, shape, key = (
        network_of(config, dataset),
        dataset.train.images.shape[1:],
        key_of(config.seed, "classifiers"),
    )

    def start(seed: int) -> training.TrainState:
        own = jax.random.fold_in(key, seed) if seed or not isinstance(config, TrainingConfig) else key
        return recipe.begin(network, shape, own, steps_of(config, epochs))

    starts = {seed: start(seed) for seed in sorted({*seeds})}
    states = stacking.stack([starts[seed] for seed in seeds])
    return training.with_best(states, epochs) if config.keep == "best" else states


def score_of(config: FittedConfig, dataset: data.Dataset, recipe: training.Recipe, numbers: training.StepSizes):
    """What the best epoch is found by: accuracy on images held out, under ten steps of PGD; None to keep the last."""
    if config.keep == "last":
        return None
    held = dataset.train.take(config.held_out)
    attack = attacks.pgd(recipe.norm, attacks.cross_entropy, 10) if recipe.norm else attacks.no_attack
    network = network_of(config, dataset)
    mesh = stacking.device_mesh(stacking.size(numbers.epsilon), config.chunk)
    return training.held_out(network, attack, held, numbers, mesh, chunk=config.chunk)


def classifiers_plan(config: TrainingConfig, specs: Sequence[Spec], dataset: data.Dataset) -> Plan:
    """How networks of one norm and loss are trained."""
    network, first, count = network_of(config, dataset), specs[0], len(specs)
    recipe, epochs = recipe_of(config, first.norm), config.epochs if first.norm else config.standard_epochs
    radii, multiple = jnp.array([spec.epsilon for spec in specs]), training.OBJECTIVES[config.objective].step
    step_size = 0.0 if not first.norm else config.step_sizes[first.norm] if multiple is None else multiple * radii
    sizes = training.StepSizes(
        radii,
        jnp.broadcast_to(step_size, (count,)),
        jnp.full(count, config.learning_rate),
        jnp.full(count, config.objective_weight),
        decays_of(config, count),
    )
    states = begun(config, dataset, recipe, epochs, [spec.seed for spec in specs])
    loss = losses_of(config, bound=500.0)[first.loss] if first.loss else attacks.cross_entropy
    step = recipe.step(network, steps_of(config, epochs), loss)
    names = [spec.name for spec in specs]
    work = networks.intensity(network, dataset.train.images.shape[1:], recipe.passes)
    return Plan(
        first.stack, step, states, sizes, names, config.batch_size, epochs, config.shuffle, work,
        score_of(config, dataset, recipe, sizes), f"{config.objective if first.norm else 'standard'} training",
    )  # fmt: skip


def decays_of(config: FittedConfig, count: int) -> jax.Array | None:
    """The weight decays of a stack; None where there is none."""
    return jnp.full(count, config.weight_decay) if config.weight_decay else None


@launch.patiently()
def fit_manifold(run: Run, name: str, train: data.Split) -> Any:
    """Fits, continues or loads the run's manifold of a kind; returns its arrays."""
    kind, path = manifolds.KINDS[name], run.workdir / "networks" / name
    done = runs.finished(path, runs.load_arrays)
    if done:
        return done[1]
    wanted = manifold_settings(run.config, name)
    about = {"kind": "manifold", "manifold": name, "image_shape": list(run.image_shape), "training": wanted}
    other = stage_of(name, run.source)
    if run.source and other and equal(runs.read_about(other), wanted, other, run.source.strict):
        arrays = runs.load_arrays(other)[1]
    elif kind.fit:
        arrays = kind.fit(used(run, train), wanted)
    else:
        plan = manifold_plan(run.config, name, run.image_shape)
        begins = run.meter is None or run.meter.begins(run.dataset.name, name, str(wanted))
        arrays = stacking.replica((fit(run, plan, train) if begins else plan.states).variables, 0)
    runs.save_stack(path, stacking.stack([arrays]), about)
    runs.remove(run.workdir / "checkpoints" / name)
    return runs.load_arrays(path)[1]


def used(run: Run, train: data.Split) -> data.Dataset:
    """What a run uses of its data set, for manifolds that are not trained."""
    config, truth = run.config, run.dataset.truth
    test = run.dataset.test.take(config.test_examples)
    if truth is not None:
        codes = truth.train_codes[config.held_out :][: len(train.labels)], truth.test_codes[: len(test.labels)]
        truth = truth._replace(train_codes=codes[0], test_codes=codes[1])
    return run.dataset._replace(train=train, test=test, truth=truth)


def manifold_plan(config: Any, name: str, image_shape: Sequence[int]) -> Plan:
    """How a manifold that is trained is trained."""
    kind = manifolds.KINDS[name]
    assert kind.fitting is not None
    settings = manifold_settings(config, name)
    fitting = kind.fitting(image_shape, key_of(config.seed, name), settings)
    project = lambda arrays, image: kind.manifold(image_shape, arrays, None, settings).project(image)  # noqa: E731
    work = stacking.intensity(project, stacking.replica(fitting.states.variables, 0), jnp.zeros(image_shape))
    return Plan(
        name, fitting.step, fitting.states, fitting.numbers, [kind.title], fitting.batch_size, fitting.epochs,
        config.shuffle, work,
    )  # fmt: skip


def fit(run: Run, plan: Plan, examples) -> training.TrainState:
    """`training.fit` that goes on from the stage's last checkpoint, saves as the options say, and stops when asked."""
    if run.meter:
        return run.meter.trained(plan, examples, run.options)
    label = f"training {plan.name}" + (f", {len(plan.names)} networks" if len(plan.names) > 1 else "")
    checkpoint = run.workdir / "checkpoints" / plan.name
    events = run.workdir / "tensorboard" / plan.name if run.options.tensorboard else None
    with (
        launch.patiently() as stop,
        runs.states_of(checkpoint, plan.states) as (states, save),
        progress(label, events, plan.names) as report,
    ):
        saving = training.Checkpoints(save, *run.options.interval)
        options = plan.options(run.options) | {"stop": stop, "progress": report, "checkpoints": saving}
        return training.fit(plan.step, states, plan.numbers, examples, **options)
