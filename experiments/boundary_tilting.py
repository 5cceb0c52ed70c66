r"""Section 2.2: why gradients follow the manifold; adversarial training takes the tilt out of the decision boundary.

Trains a standard, a weakly and a strongly robust network on two elongated Gaussians in the plane, and
measures how far their adversarial examples and boundaries turn away from the data.

    python -m experiments.boundary_tilting          # below a minute on 2 cores

Expected: the angle between the adversarial displacement and the data falls from the standard network
(published picture: about 40 degrees) over the weak to the strong one (about 0).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.harness import experiment, running
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, with_interval
from experiments.harness.progress import counted
from experiments.harness.settings.config import Config, setting
from experiments.harness.training.stages import Run
from experiments.harness.verdicts import claims
from robgrad import attacks, data, intervals, networks, stacking, training

RADII = {"standard": 0.0, "weak": 0.25, "strong": 0.5}
STEP_SIZE, STEPS, EPOCHS, BATCH = 2.0, 40, 10, 100
ANALYSIS = (1.0, STEP_SIZE)
# 99% of a two-dimensional Gaussian lies within this squared Mahalanobis distance.
CHI_SQUARED_99 = 9.21
NETWORK = networks.MLP()
MEASURED = ("displacement_angle", "boundary_angle", "share_outside")


@dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    """Section 2.2."""

    repeats: int = setting("Data sets and trainings, each of its own seed.", 10)
    points: int = setting("Points a class.", 3000)
    attack: str = setting("Attack in training and in the analysis.", "pgd", choices=lambda: tuple(attacks.ATTACKS))


def attack_of(config: ToyConfig) -> attacks.Attack:
    """The attack of training and analysis, in l2 on the cross-entropy."""
    return attacks.ATTACKS[config.attack]("l2", attacks.cross_entropy, STEPS)


def train(step: training.Step, points: data.Split, key: Array):
    """The three networks, one stack from one start; returns their variables."""
    count = len(RADII)
    sizes = training.StepSizes(
        jnp.array(list(RADII.values())), jnp.full(count, STEP_SIZE), jnp.full(count, 1e-3), jnp.zeros(count)
    )
    states = stacking.stack([training.init_classifier(NETWORK, (2,), key)] * count)
    mesh = stacking.device_mesh(count, BATCH)
    # A zero radius makes the attack return its image, so that the standard network trains in the same program.
    return training.fit(
        step, states, sizes, points, mesh=mesh, batch_size=BATCH, epochs=EPOCHS, names=list(RADII)
    ).variables


def principal_axis(points: Array) -> Array:
    """Unit vector of the data's largest variance."""
    return jnp.linalg.eigh(jnp.cov(points.T))[1][:, -1]


def angle(vectors: Array, axis: Array) -> Array:
    """Angles in degrees, 0 to 90, between vectors `[..., 2]` and the line along an axis."""
    cosine = jnp.abs(vectors @ axis) / jnp.linalg.norm(vectors, axis=-1)
    return jnp.degrees(jnp.arccos(jnp.clip(cosine, 0.0, 1.0)))


def boundary_point(logits_fn: networks.LogitsFn, one: Array, other: Array) -> Array:
    """Where the decision changes on the way from a point of class 0 to one of class 1, by bisection."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        first = logits_fn(middle).argmax() == 0
        return jnp.where(first, middle, low), jnp.where(first, high, middle)

    return lax.fori_loop(0, 25, halve, (one, other))[0]


@partial(jax.jit, static_argnums=0)
def analyse(attack: attacks.Attack, variables, points: data.Split) -> dict[str, Array]:
    """Adversarial examples of one network, and what the docstring of this module measures."""
    places, labels = jnp.asarray(points.images), jnp.asarray(points.labels)
    half = len(places) // 2
    own = networks.logits_fn(NETWORK, variables)
    attacked = jax.vmap(lambda x, y: attack(jax.random.key(0), own, x, y, *map(jnp.float32, ANALYSIS)))(places, labels)
    axis, moved = principal_axis(places), (attacked - places).reshape(2, half, 2).mean(1)
    starts, ends = places[:half][:200], places[half:][:200]
    borders = jax.vmap(lambda one, other: boundary_point(own, one, other))(starts, ends)
    normals = jax.vmap(jax.grad(lambda x: own(x)[0] - own(x)[1]))(borders)

    def outside(cluster: Array) -> Array:
        away = attacked - cluster.mean(0)
        return jnp.einsum("ni,ij,nj->n", away, jnp.linalg.inv(jnp.cov(cluster.T)), away) > CHI_SQUARED_99

    return {
        "attacked": attacked,
        "accuracy": jnp.mean(networks.predicted(jax.vmap(own)(places)) == labels),
        "displacement_angle": angle(moved, axis).mean(),
        "boundary_angle": angle(normals, axis).mean(),
        "share_outside": jnp.mean(outside(places[:half]) & outside(places[half:])),
    }


def regions(variables, side: int = 200) -> np.ndarray:
    """The class that a network predicts on a grid over the plane `[side, side]`."""
    line = np.linspace(-1.0, 1.0, side, dtype=np.float32)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    own = networks.logits_fn(NETWORK, variables)
    return np.asarray(jax.vmap(lambda x: own(x).argmax())(grid)).reshape(side, side)


def measure(run: Run) -> experiment.Arrays:
    """Angles and shares `[repeat, network]`, and what the figure shows of the first repeat."""
    config, attack = run.config, attack_of(run.config)
    step = training.classifier_step(NETWORK, attack)
    arrays: experiment.Arrays = {}
    measured: list[list] = []

    def once(repeat: int) -> tuple[data.Split, list, list]:
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), repeat))
        points = data.two_gaussians(data_key, config.points)
        variables = train(step, points, key)
        each = [stacking.replica(variables, index) for index in range(len(RADII))]
        return points, each, [jax.device_get(analyse(attack, one, points)) for one in each]

    if run.meter:
        count = len(RADII) * config.repeats
        run.meter.few("repeats", lambda some: once(int(some[0])), np.arange(config.repeats), 1)
        run.meter.rows["repeats"] |= {"networks": count, "trained": count}
        return {}
    label = f"training {len(RADII)} networks, {config.repeats} times"
    for repeat, _ in counted(range(config.repeats), label):
        points, each, found = once(repeat)
        measured.append(found)
        if not repeat:
            shown = {"points": points.images, "regions": np.stack([regions(one) for one in each]).astype(np.uint8)}
            shown["attacked"] = np.stack([one["attacked"][: config.points] for one in measured[0]])
            arrays = {f"shown/{name}": np.asarray(values) for name, values in shown.items()}
    for field in ("accuracy", *MEASURED):
        arrays[field] = np.array([[float(one[field]) for one in repeat] for repeat in measured])
    return arrays


def tabulate(config: ToyConfig, arrays: experiment.Arrays) -> experiment.Tables:
    """Means over the repeats, with 95% t intervals."""
    rows = []
    for index, (name, radius) in enumerate(RADII.items()):
        row: Row = {"network": name, "train_epsilon": radius, "repeats": config.repeats}
        row["train_accuracy"] = arrays["accuracy"][:, index].mean()
        for field in MEASURED:
            values = arrays[field][:, index]
            row |= with_interval(field, (values.mean(), *intervals.of_mean(values)))
        rows.append(row)
    return {"rows": rows}


def claim(config: ToyConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> Iterator[Row]:
    """The angles of the adversarial displacement and of the boundary fall with training strength."""
    del tables
    for field, text, published in (
        (
            "displacement_angle",
            "adversarial displacement turns towards the data (degrees)",
            "about 40, less, about 0 (picture)",
        ),
        ("boundary_angle", "the boundary's normal turns towards the data (degrees)", "-"),
    ):
        over = claims.Over(config.repeats, "a data set each")
        one = claims.Claim("2.2", text, "standard, weak, strong", published, over)
        steps = intervals.of_mean(-np.diff(arrays[field], axis=1))
        yield claims.order(one, arrays[field].mean(0), steps) if config.repeats > 1 else claims.untested(one)


def draw(workdir: Path, config: ToyConfig, arrays: experiment.Arrays, tables: experiment.Tables) -> None:
    """The four panels: the data; then each network's regions, and where one class's adversarial examples go."""
    del tables
    points, half = arrays["shown/points"], config.points
    classes = {"class 0": points[:half], "class 1": points[half:]}
    panels = {"data": figures.Plane(classes)}
    for index, (name, radius) in enumerate(RADII.items()):
        attacked = arrays["shown/attacked"][index]
        arrow = (points[:half].mean(0), attacked.mean(0))
        panels[f"{name}, epsilon {radius:g}"] = figures.Plane(
            classes | {"adversarial, class 0": attacked}, arrays["shown/regions"][index], arrow
        )
    figures.plane_figure(workdir / "boundaries.svg", panels)


EXPERIMENT = experiment.Experiment(
    name="boundary_tilting",
    title="2.2 The decision boundary on two Gaussians",
    question="Why do the gradients of robust networks lie along the data? In the plane one can see it: adversarial "
    "training takes away the tilt of the decision boundary along the direction in which the data hardly vary.",
    config=ToyConfig,
    measure=measure,
    tabulate=tabulate,
    claim=claim,
    draw=draw,
    columns={
        "network": "network",
        "train_epsilon": "training epsilon",
        "train_accuracy": "training accuracy",
        "displacement_angle": "displacement to axis, degrees",
        "boundary_angle": "boundary normal to axis, degrees",
        "share_outside": "outside both classes",
    },
    captions={
        "boundaries.svg": "The data; then each network's decision regions, one class's adversarial examples, and an "
        "arrow from that class's mean to theirs. The arrow should turn towards the data with training strength."
    },
    takes="half a minute",
    picture="boundaries.svg",
)

if __name__ == "__main__":
    running.main(EXPERIMENT, __doc__)
