"""Networks measured against manifolds: attacked images and loss gradients of every test image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.measurement import estimates
from experiments.harness.pages import figures
from experiments.harness.pages.tables import Row, interval_of
from experiments.harness.progress import counted, counted_networks
from experiments.harness.settings.config import DataConfig, TrainingConfig, blocks, losses_of, setting
from experiments.harness.training.meter import Meter
from experiments.harness.training.stages import Run
from robgrad import attacks, data, gradients, manifolds, networks, runs, stacking

Arrays = dict[str, np.ndarray]
# Training images that stand for the data's covariance.
_SPREAD = 1000


def _of_manifolds() -> Any:
    """A configuration with a field for each setting of each kind of manifold."""
    every = {name: one for kind in manifolds.KINDS.values() for name, one in kind.settings.items()}
    fields = [(name, type(one.default), setting(one.text, one.default)) for name, one in every.items()]
    return make_dataclass("ManifoldsConfig", fields, bases=(DataConfig,), frozen=True, kw_only=True)


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig(_of_manifolds()):  # type: ignore[misc]
    """Manifolds, each with its own settings, and the analysis attack."""

    manifold: tuple[str, ...] = setting(
        "Estimates of the image manifold; 'all' stands for all that the data set allows.",
        ("vae-gan",),
        choices=lambda: (*manifolds.KINDS, "all"),
    )
    analysis_attack: str = setting("Analysis attack.", "pgd", choices=lambda: tuple(attacks.ATTACKS))
    analysis_epsilon: float = setting(
        "Radius of the l2 attack whose distance to the manifold is measured.", 12.0, zero=True
    )
    analysis_losses: tuple[str, ...] = setting(
        "Losses of the analysis attacks.", ("xent", "cw"), choices=lambda: tuple(attacks.LOSSES)
    )
    analysis_step_size: float = setting("Step of the analysis attack.", 2.0)
    analysis_steps: int = setting("Steps of the analysis attack.", 40)
    sampled_projection: bool = setting(
        "Sample the VAE-GAN's code when projecting instead of taking its mean, as the paper's code.", False
    )


@dataclass(frozen=True, kw_only=True)
class AnalysedConfig(AnalysisConfig, TrainingConfig):
    """The same on networks that the run trains."""


def places(config: AnalysisConfig, image_shape: Sequence[int]):
    """Compiles what is the same for all networks: tangent spaces at each image, and what they say by themselves.

    Of each manifold `distance`, `chance` (a random direction's fraction) and `covariance_chance`; where the exact one
    is among them also `products`, of its tangent basis with each estimate's.
    """

    def at(shared, _, example):
        spread, arrays = shared
        key, pixels = example
        image = data.scale(pixels)
        _, sampling_key = jax.random.split(key)
        tangents, said = {}, {}
        for name in config.manifold:
            surface = estimates.surface_of(config, name, image_shape, arrays[name], sampling_key)
            # A sampled code would move the tangent space too.
            tangents[name] = estimates.surface_of(config, name, image_shape, arrays[name]).tangent_space(image)
            basis, rank = tangents[name]
            said[f"{name}/distance"] = manifolds.distance(surface, image)
            said[f"{name}/chance"] = rank / image.size
            said[f"{name}/covariance_chance"] = gradients.covariance_chance(basis, spread)
        for name in config.manifold:
            if "exact" in config.manifold and name != "exact":
                said[f"{name}/products"] = tangents[name].basis.T @ tangents["exact"].basis
        return tangents, said

    run = stacking.per_example(at, stacking.device_mesh(1, config.chunk), config.chunk)
    return lambda shared, keys, images: stacking.replica(run(shared, jnp.zeros(1), (keys, images)), 0)


def analyser(config: AnalysisConfig, network, image_shape: Sequence[int], loss: attacks.Loss, mesh):
    """Compiles the measurement of one test image on one network, for all of both.

    Shared by all are the manifolds' arrays and the tangent spaces of a block of images; an example says at which
    places its own stands there, and those of another image and of another one of its class.
    """
    attack = attacks.ATTACKS[config.analysis_attack](attacks.L2, loss, config.analysis_steps)

    def analyse(shared, variables, example):
        arrays, standard_variables, tangents, epsilon, step_size = shared
        (key, (pixels, label)), at = example
        image = data.scale(pixels)
        attack_key, sampling_key = jax.random.split(key)
        own, standard = (networks.logits_fn(network, given) for given in (variables, standard_variables))
        attacked = attack(attack_key, own, image, label, epsilon, step_size)
        gradient = gradients.loss_gradient(own, image, loss=loss)
        said = {
            "gradient_norm": attacks.length(gradient),
            "own": networks.predicted(own(image)) != networks.predicted(own(attacked)),
            "transfer": networks.predicted(standard(image)) != networks.predicted(standard(attacked)),
            "attacked": attacked,
            "gradient": -gradients.loss_gradient(own, image),
        }
        for name, tangent in tangents.items():
            surface = estimates.surface_of(config, name, image_shape, arrays[name], sampling_key)
            said[f"{name}/attacked_distance"] = manifolds.distance(surface, attacked)
            for field, place in zip(FRACTIONS, at, strict=True):
                said[f"{name}/{field}"] = gradients.tangent_fraction(gradient, tangent.basis[place])
        return said

    return stacking.per_example(analyse, mesh, config.chunk)


# Along the image's own tangent space, that of the next image, and that of the next one of its class.
FRACTIONS = ("tangent_fraction", "fraction_elsewhere", "fraction_same_class")


def others_of(labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of each image, of the next of the first `count`, and of the next of its class (its own if it is alone)."""
    here = np.arange(len(labels))
    same = here.copy()
    for label in np.unique(labels[:count]):
        members = np.flatnonzero(labels[:count] == label)
        same[members] = np.roll(members, -1)
    return here, (here + 1) % count, same


def measured(
    run: Run, trained: runs.Classifiers, arrays: Mapping[str, Any], train: data.Split, test: data.Split, key: jax.Array
) -> Arrays:
    """What is measured of all test images on all networks, by name; `[image, ...]`, or `[network, image, ...]`.

    A block of images comes after another; each is saved in the run's `analysis` and, where it was saved before, read
    from there. Attacked images and gradients are kept of the first images only.
    """
    config, shape, count = run.config, run.image_shape, len(trained.names)
    if run.meter:
        _metered(run, run.meter, trained, arrays, train, test)
        return {}
    mesh = stacking.device_mesh(count, config.chunk)
    place = places(config, shape)
    compiled = {
        name: analyser(config, trained.network, shape, loss, mesh) for name, loss in losses_of_analysis(config).items()
    }
    standard, keys = trained.at(0), jax.random.split(key, len(test.labels))
    spread = spread_of(train)
    parts: dict[str, list] = {name: [] for name in ("", *compiled)}
    every = list(blocks(len(test.labels), 5 * config.chunk))
    for block, rows in counted(every, f"analysing {len(test.labels)} images, {counted_networks(count)}"):
        images, tangents = test.take(rows), None
        for name in ("", *compiled):
            path = run.workdir / "analysis" / f"{name or 'images'}-{block}.npz"
            part = runs.read_arrays(path)
            if part is None:
                if tangents is None:
                    tangents, said = place((spread, arrays), keys[rows], images.images)
                if not name:
                    part = jax.device_get(said)
                else:
                    shared = (arrays, standard, tangents, config.analysis_epsilon, config.analysis_step_size)
                    examples = ((keys[rows], images), others_of(images.labels, len(np.unique(rows))))
                    part = jax.device_get(compiled[name](shared, trained.variables, examples))
                    part |= {
                        field: part[field][:, : 0 if block else estimates.SHOWN] for field in ("attacked", "gradient")
                    }
                runs.write_arrays(path, part)
            parts[name].append(part)

    def join(name: str, *leaves: np.ndarray) -> np.ndarray:
        joined = np.concatenate(leaves, axis=1 if name else 0)
        return joined[:, : len(test.labels)] if name else joined[: len(test.labels)]

    found = {name: {field: join(name, *(one[field] for one in of)) for field in of[0]} for name, of in parts.items()}
    made = found.pop("")
    for loss, fields in found.items():
        # A certain network's gradients are below what half precision can hold.
        made |= {f"shown/{loss}/attacked": fields.pop("attacked").astype(np.float16)}
        made |= {f"shown/{loss}/gradient": fields.pop("gradient")}
        made |= {f"{loss}/{field}": values for field, values in fields.items()}
    return made


def spread_of(train: data.Split) -> jax.Array:
    """Some training images less their mean, `[N, pixels]`."""
    some = data.scale(jnp.asarray(train.images[:_SPREAD])).reshape(min(_SPREAD, len(train.images)), -1)
    return some - some.mean(0)


def losses_of_analysis(config: AnalysisConfig) -> dict[str, attacks.Loss]:
    """The losses of the analysis attacks, the margin unbounded."""
    return {name: losses_of(config, bound=np.inf)[name] for name in config.analysis_losses}


def fields_of(arrays: Arrays, loss: str, manifold: str) -> Arrays:
    """What was measured under one analysis loss against one manifold, by field; `[image]` or `[network, image]`."""
    names = ("gradient_norm", "own", "transfer")
    found = {name: arrays[f"{loss}/{name}"] for name in names}
    for prefix in (f"{manifold}/", f"{loss}/{manifold}/"):
        found |= {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    return found


def draw_fractions(path: Path, rows: Sequence[Row], along: str, colours: figures.Colours) -> None:
    """Tangent fractions of all networks, by how they were trained, beside their baselines."""
    known = {"of another image of its class": "fraction_same_class", "of another image": "fraction_elsewhere"}
    others = {text: field for text, field in known.items() if field in rows[0]}
    groups: dict[str, dict[str, list[figures.Interval]]] = {}
    for row in rows:
        values = [interval_of(row, "tangent_fraction"), *((row[field],) * 3 for field in others.values())]
        groups.setdefault(figures.group_of(row["network"]), {})[row["network"]] = values
    references = {"random direction": rows[0]["tangent_fraction_chance"]}
    if np.isfinite(rows[0]["tangent_fraction_covariance"]):
        references["direction with the data's covariance"] = rows[0]["tangent_fraction_covariance"]
    marks = ("the image's own tangent space", *others)
    figures.intervals_figure(path, groups, references, f"share of the loss gradient {along}", colours, marks)


def _metered(
    run: Run, meter: Meter, trained: runs.Classifiers, arrays: Mapping[str, Any], train: data.Split, test: data.Split
) -> None:
    """Adds what tangent spaces at the images, and the analysis of the networks there, would take."""
    config, shape, chunk = run.config, run.image_shape, min(run.config.chunk, len(test.labels))
    place = places(config, shape)
    keys = jax.random.split(jax.random.key(0), len(test.labels))
    at = lambda some: place((spread_of(train), arrays), *some)  # noqa: E731
    tangents, _ = meter.few(f"tangent spaces at {len(test.labels)} images", at, (keys, test.images), chunk)
    one, others = trained.take([0]), others_of(test.labels, chunk)
    for loss in losses_of_analysis(config).values():
        of = analyser(config, trained.network, shape, loss, stacking.device_mesh(1, config.chunk))
        shared = (arrays, one.at(0), tangents, config.analysis_epsilon, config.analysis_step_size)
        meter.few(
            f"analysis of {len(test.labels)} images",
            partial(of, shared, one.variables),
            ((keys, test), others),
            chunk,
            len(trained.names),
        )
