"""The manifolds of a run: fitted, drawn, and judged by how far they lie from what is no image of the set."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.pages.tables import Row
from experiments.harness.training import stages
from experiments.harness.training.origins import manifold_settings
from experiments.harness.training.stages import Run
from robgrad import data, manifolds
from robgrad.data.shapes import first_test_images

Arrays = dict[str, np.ndarray]
# Images that are shown.
SHOWN = 10


def surface_of(config: Any, name: str, image_shape: Sequence[int], arrays: Any, key=None):
    """One of a run's manifolds; the key, for those that can sample their projection."""
    settings = manifold_settings(config, name)
    return manifolds.KINDS[name].manifold(image_shape, arrays, key if config.sampled_projection else None, settings)


def fitted(run: Run, train: data.Split, test: data.Split, key: jax.Array) -> tuple[dict[str, Any], Arrays]:
    """The run's manifolds, each trained, fitted or loaded: their arrays by name, `pictures` and `qualities` of them."""
    arrays = {name: stages.fit_manifold(run, name, train) for name in run.config.manifold}
    return arrays, pictures(run, arrays, test, key) | qualities(run, arrays, train, test)


def pictures(run: Run, arrays: Mapping[str, Any], test: data.Split, key) -> Arrays:
    """Some test images, their projections on each manifold, and images sampled from those that can."""
    images, shape = data.scale(jnp.asarray(test.images[:SHOWN])), run.image_shape
    shown = {"shown/test": images}
    for name in run.config.manifold:
        # Its arrays are arguments: as constants, a set's images take the compiler longer than all else.
        def project(arrays: Any, image: jax.Array, name: str = name) -> jax.Array:
            return surface_of(run.config, name, shape, arrays).project(image)

        shown[f"shown/{name}/projected"] = jax.jit(jax.vmap(project, (None, 0)))(arrays[name], images)
        if sample := manifolds.KINDS[name].sample:
            keys = jax.random.split(key, 2 * SHOWN)
            shown[f"shown/{name}/samples"] = jax.jit(partial(sample, shape))(arrays[name], keys)
    return {name: np.asarray(values, np.float16) for name, values in shown.items()}


def rows_of_pictures(config: Any, arrays: Arrays) -> dict[str, np.ndarray]:
    """Rows of an image grid: of each manifold projections, and samples where there are some."""
    rows = {}
    for name in config.manifold:
        title = manifolds.KINDS[name].title
        rows[f"{title}: projection"] = arrays[f"shown/{name}/projected"]
        if f"shown/{name}/samples" in arrays:
            samples = arrays[f"shown/{name}/samples"]
            rows |= {f"{title}: sample": samples[:SHOWN], f"{title}: sample ": samples[SHOWN:]}
    return rows


def qualities(run: Run, arrays: Mapping[str, Any], train: data.Split, test: data.Split) -> Arrays:
    """How far each manifold lies from what is no image of the set: noise, and images of another set, 100 of each.

    Noise is uniform in the pixel range; the other set is digits, or rendered shapes where the set is digits, resized.
    Also `class_distance`, of each test image to the nearest training image of another class.
    """
    shape, count = run.image_shape, 100
    noise = jax.random.uniform(jax.random.key(0), (count, *shape), minval=-1.0, maxval=1.0)
    is_digits = run.dataset.name == "digits"
    other = first_test_images("shapes-16", count) if is_digits else data.load("digits").test.images[:count]
    strange = jnp.clip(jax.image.resize(data.scale(jnp.asarray(other)), (count, *shape[:2], 1), "linear"), -1, 1)
    sets = {"noise": noise, "strange": jnp.broadcast_to(strange, (count, *shape))}
    found = {"class_distance": _between_classes(train, test)}
    for name in run.config.manifold:

        def distance(arrays: Any, image: jax.Array, name: str = name) -> jax.Array:
            return manifolds.distance(surface_of(run.config, name, shape, arrays), image)

        away = jax.jit(jax.vmap(distance, (None, 0)))
        found |= {f"{name}/{kind}_distance": np.asarray(away(arrays[name], images)) for kind, images in sets.items()}
    return found


def _between_classes(train: data.Split, test: data.Split) -> np.ndarray:
    """The l2 distance of each test image to the nearest training image of another class."""
    flat = lambda images: np.asarray(data.scale(jnp.asarray(images))).reshape(len(images), -1)  # noqa: E731
    ours, theirs = flat(test.images), flat(train.images)
    squares = (ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * ours @ theirs.T
    squares[test.labels[:, None] == train.labels] = np.inf
    return np.sqrt(np.maximum(squares.min(1), 0))


def rows_of_manifolds(config: Any, arrays: Arrays) -> list[Row]:
    """A row for each manifold: its dimensions, and how far it lies from images of the set, of others, and noise."""
    rows = []
    for name in config.manifold:
        pixels = int(np.prod(arrays["shown/test"].shape[1:]))
        row: Row = {"manifold": manifolds.KINDS[name].title, "dimensions": pixels * np.mean(arrays[f"{name}/chance"])}
        for field in ("distance", "strange_distance", "noise_distance"):
            row[field] = np.median(arrays[f"{name}/{field}"]) if f"{name}/{field}" in arrays else np.nan
        row["analysis_epsilon"] = config.analysis_epsilon
        row["half_class_distance"] = np.median(arrays["class_distance"]) / 2 if "class_distance" in arrays else np.nan
        rows.append(row)
    return rows


MANIFOLDS = (
    "The manifolds: mean dimensions of their tangent spaces; median distance of test images, of images of another "
    "set, of noise; the analysis attack's radius beside half the median distance between an image and the nearest of "
    "another class. As in the paper the radius exceeds that half, so that attacks leave the original class and end "
    "at the edge of their ball",
    (
        "manifold",
        "dimensions",
        "distance",
        "strange_distance",
        "noise_distance",
        "analysis_epsilon",
        "half_class_distance",
    ),
)
