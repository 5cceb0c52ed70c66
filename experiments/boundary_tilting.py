r"""Section 2.2: why gradients follow the manifold; adversarial training takes the tilt out of the decision boundary.

Trains a standard, a weakly and a strongly robust network on two elongated Gaussians in the plane, and
measures how far their adversarial examples and boundaries turn away from the data.

    python -m experiments.boundary_tilting          # below a minute on 2 cores

Expected: the angle between the adversarial displacement and the data falls from the standard network
(published picture: about 40 degrees) over the weak to the strong one (about 0).
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array, lax

from experiments import claims, launch, pages
from robgrad import attacks, datasets, losses, models, page, report, stacking, training

FLAGS = flags.FLAGS
NAME = "boundary_tilting"
TITLE = "2.2 The decision boundary on two Gaussians"
QUESTION = (
    "Why do the gradients of robust networks lie along the data? In the plane one can see it: adversarial training "
    "takes away the tilt of the decision boundary along the direction in which the data hardly vary."
)
CAPTIONS = {
    "boundaries.png": "The data; then each network's decision regions, one class's adversarial examples, and an arrow "
    "from that class's mean to theirs. The arrow should turn towards the data with training strength."
}
RADII = {"standard": 0.0, "weak": 0.25, "strong": 0.5}
STEP_SIZE, STEPS, EPOCHS, BATCH = 2.0, 40, 10, 100
ANALYSIS = (1.0, STEP_SIZE)
# 99% of a two-dimensional Gaussian lies within this squared Mahalanobis distance.
CHI_SQUARED_99 = 9.21
MODEL = models.MLP()
ATTACK = attacks.pgd(attacks.L2, losses.cross_entropy, STEPS)
COLUMNS = (
    *("network", "train_epsilon", "train_accuracy", "displacement_angle", "displacement_angle_low"),
    *("displacement_angle_high", "boundary_angle", "boundary_angle_low", "boundary_angle_high", "share_outside"),
)

flags.DEFINE_integer("repeats", 10, "Data sets and trainings, each of its own seed.", lower_bound=1)
flags.DEFINE_integer("points", 3000, "Points a class.", lower_bound=100)


def train(step: training.Step, data: datasets.Split, key: Array):
    """The three networks, one stack from one start; returns their parameters."""
    numbers = training.Numbers(
        jnp.array(list(RADII.values())), jnp.full(len(RADII), STEP_SIZE), jnp.full(len(RADII), 1e-3)
    )
    states = stacking.stack([training.init_classifier(MODEL, (2,), key)] * len(RADII))
    mesh = stacking.device_mesh(len(RADII), BATCH)
    # A zero radius makes the attack return its image, so that the standard network trains in the same program.
    return training.fit(
        step, states, numbers, data, mesh=mesh, batch_size=BATCH, epochs=EPOCHS, names=list(RADII)
    ).params


def principal_axis(points: Array) -> Array:
    """Unit vector of the data's largest variance."""
    return jnp.linalg.eigh(jnp.cov(points.T))[1][:, -1]


def angle(vectors: Array, axis: Array) -> Array:
    """Angles in degrees, 0 to 90, between vectors `[..., 2]` and the line along an axis."""
    cosine = jnp.abs(vectors @ axis) / jnp.linalg.norm(vectors, axis=-1)
    return jnp.degrees(jnp.arccos(jnp.clip(cosine, 0.0, 1.0)))


def boundary_point(logits_fn: models.LogitsFn, one: Array, other: Array) -> Array:
    """Where the decision changes on the way from a point of class 0 to one of class 1, by bisection."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        first = logits_fn(middle).argmax() == 0
        return jnp.where(first, middle, low), jnp.where(first, high, middle)

    return lax.fori_loop(0, 25, halve, (one, other))[0]


@jax.jit
def analyse(params, data: datasets.Split) -> dict[str, Array]:
    """Adversarial examples of one network, and what the docstring of this module measures."""
    points, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    half = len(points) // 2
    logits_fn = models.logits_fn(MODEL, params)
    attacked = jax.vmap(lambda x, y: ATTACK(jax.random.key(0), logits_fn, x, y, *map(jnp.float32, ANALYSIS)))(
        points, labels
    )
    axis, moved = principal_axis(points), (attacked - points).reshape(2, half, 2).mean(1)
    starts, ends = points[:half][:200], points[half:][:200]
    borders = jax.vmap(lambda one, other: boundary_point(logits_fn, one, other))(starts, ends)
    normals = jax.vmap(jax.grad(lambda x: logits_fn(x)[0] - logits_fn(x)[1]))(borders)

    def outside(cluster: Array) -> Array:
        away = attacked - cluster.mean(0)
        return jnp.einsum("ni,ij,nj->n", away, jnp.linalg.inv(jnp.cov(cluster.T)), away) > CHI_SQUARED_99

    return {
        "attacked": attacked,
        "accuracy": jnp.mean(jax.vmap(logits_fn)(points).argmax(-1) == labels),
        "displacement_angle": angle(moved, axis).mean(),
        "boundary_angle": angle(normals, axis).mean(),
        "share_outside": jnp.mean(outside(points[:half]) & outside(points[half:])),
    }


def rows_of(measured: dict[str, list[dict[str, Array]]]) -> list[report.Row]:
    """Means over the repeats, with 95% bootstrap intervals of the means."""
    rows = []
    for name, repeats in measured.items():
        row: report.Row = {"network": name, "train_epsilon": RADII[name], "repeats": len(repeats)}
        row["train_accuracy"] = np.mean([one["accuracy"] for one in repeats])
        for field in ("displacement_angle", "boundary_angle", "share_outside"):
            values = np.array([float(one[field]) for one in repeats])
            low, high = report.interval(values, np.mean)
            row |= {field: values.mean(), f"{field}_low": low, f"{field}_high": high}
        rows.append(row)
    return rows


def draw(path, data: datasets.Split, params, measured: dict[str, list[dict[str, Array]]]) -> None:
    """The four panels: the data; then each network's regions, and where one class's adversarial examples go."""
    side = np.linspace(-1.0, 1.0, 200, dtype=np.float32)
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    half = len(data.labels) // 2
    classes = {"class 0": data.images[:half], "class 1": data.images[half:]}
    panels = {"data": report.Plane(classes)}
    for index, name in enumerate(RADII):
        logits_fn = models.logits_fn(MODEL, stacking.replica(params, index))
        regions = np.asarray(jax.vmap(lambda x, f=logits_fn: f(x).argmax())(grid.reshape(-1, 2))).reshape(200, 200)
        attacked = np.asarray(measured[name][0]["attacked"])[:half]
        arrow = (data.images[:half].mean(0), attacked.mean(0))
        panels[f"{name}, epsilon {RADII[name]:g}"] = report.Plane(
            classes | {"adversarial, class 0": attacked}, regions, arrow
        )
    report.plane_figure(path, panels)


def run(workdir: Path) -> tuple[Path, dict[str, Any]]:
    """Runs or reads the experiment of the flags; returns its directory and results."""
    config = {"seed": FLAGS.seed, "repeats": FLAGS.repeats, "points": FLAGS.points}
    return pages.once(workdir, NAME, TITLE, config, part_of, lambda workdir, place: _run(workdir, config, place))


def _run(workdir: Path, config: Mapping[str, Any], place: Mapping[str, str]) -> dict[str, Any]:
    began = time.monotonic()
    step = training.classifier_step(MODEL, ATTACK)
    measured: dict[str, list[dict[str, Array]]] = {name: [] for name in RADII}
    label, first = f"training {len(RADII)} networks, {FLAGS.repeats} times", None
    for _, repeat in launch.counted(range(FLAGS.repeats), label):
        data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(FLAGS.seed), repeat))
        data = datasets.two_gaussians(data_key, FLAGS.points)
        params = train(step, data, key)
        first = (data, params) if first is None else first
        for index, name in enumerate(RADII):
            measured[name].append(jax.device_get(analyse(stacking.replica(params, index), data)))
    draw(workdir / "boundaries.png", *first, measured)  # type: ignore[misc, call-arg]
    rows, found = rows_of(measured), claims.of_toy(measured)
    return report.write_results(workdir, NAME, config, place, rows, time.monotonic() - began, claims=found)


def part_of(results: Mapping[str, Any]) -> pages.Part:
    """What the experiment puts on a page."""
    table = page.Table("Means over the repeats", results["rows"], COLUMNS)
    return pages.Part(TITLE, QUESTION, CAPTIONS, [table], results.get("claims", []))


def main() -> None:
    """Runs the experiment of the flags."""
    pages.show(*run(Path(FLAGS.workdir or f"runs/{NAME}")), COLUMNS)


if __name__ == "__main__":
    launch.run(main)
