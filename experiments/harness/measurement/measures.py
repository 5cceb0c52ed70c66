"""Measures of attributions that need no retraining, for every attribution of a network on some images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness.progress import counted, counted_networks
from experiments.harness.training import stages
from experiments.harness.training.stages import Run
from robgrad import data, faithfulness, gradients, manifolds, networks, runs, stacking
from robgrad.gradients import controls
from robgrad.gradients.named import Forms

Arrays = dict[str, np.ndarray]
Attributions = Mapping[str, gradients.Attribution]
# Measures of one image, by whether higher is better.
MEASURES = {
    "road": True,
    "deletion": False,
    "insertion": True,
    "infidelity": False,
    "sensitivity": False,
    "randomisation": False,
    "smoothness": True,
    "pointing": True,
    "mass": True,
    "overlap": True,
}
# Images whose maps are kept.
SHOWN = 4


def of_images(
    network: Any,
    fresh: networks.Variables | None,
    rankings: Attributions,
    signed: Attributions,
    samples: int,
    chunk: int,
) -> Callable[[Any, jax.Array, data.Split], Arrays]:
    """Compiles every measure of every attribution for the networks of one architecture.

    Args:
      network: the architecture.
      fresh: variables that have learnt nothing, for the randomisation; it is left out where None.
      rankings: attributions by name; `true_mask` among them is what the others are compared with.
      signed: the same with their signs, for infidelity.
      samples: moved images of the sensitivity.
      chunk: images at a time.

    Returns:
      `(variables, keys, images)` to each measure `[image, attribution]`, and `map`.
    """
    masks = rankings.get("true_mask")
    forms = [_forms_of(name, rankings[name], signed[name]) for name in rankings]
    maps_of = partial(_maps_of, network, fresh, samples)

    def of_image(_, variables, example):
        key, (pixels, label) = example
        image, own = data.scale(pixels), networks.logits_fn(network, variables)
        keys = [gradients.key_named(key, name) for name in rankings]
        made = [maps_of(form, one, variables, image) for form, one in zip(forms, keys, strict=True)]
        said, with_signs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

        def of_map(one: tuple[jax.Array, jax.Array, jax.Array]) -> dict[str, jax.Array]:
            key, values, explained = one
            found = faithfulness.deletion_and_insertion(key, own, image, values)._asdict()
            found["road"] = faithfulness.road(key, own, image, label, values).score
            found["infidelity"] = faithfulness.infidelity(key, own, image, explained)
            if masks is not None:
                agreed = faithfulness.agreement(key, values, masks(key, own, image) > 0.5)
                found |= {field: getattr(agreed, field) * 1.0 for field in ("pointing", "mass", "overlap")}
            return found

        return said | jax.lax.map(of_map, (jnp.stack(keys), said["map"], with_signs))

    compiled = stacking.per_example(of_image, stacking.device_mesh(1, chunk), chunk)

    def measure(variables: Any, keys: jax.Array, images: data.Split) -> Arrays:
        part = jax.device_get(stacking.replica(compiled((), stacking.stack([variables]), (keys, images)), 0))
        part["map"] = part["map"][:SHOWN].astype(np.float16)
        return part

    return measure


def _forms_of(name: str, ranking: gradients.Attribution, signed: gradients.Attribution) -> Forms:
    """An attribution in its two forms, with what makes one of the other where both are robgrad's of that name."""
    known = ranking is gradients.ATTRIBUTIONS.get(name) and signed is gradients.SIGNED.get(name)
    return Forms(ranking, signed, gradients.PIXELS.get(name) if known else None)


def _maps_of(
    network: Any,
    fresh: networks.Variables | None,
    samples: int,
    forms: Forms,
    key: jax.Array,
    variables: Any,
    image: jax.Array,
) -> tuple[Arrays, jax.Array]:
    """What the maps themselves say of an attribution, and its signed form `[H, W, C]`.

    The image, the moved ones, and the network that has learnt nothing take turns in one loop, in which a ranking is
    made of the signed form where it can be: an attribution is most of what there is to compile.
    """
    moved = faithfulness.moved_images(jax.random.fold_in(key, 1), image, samples=samples)
    images = jnp.concatenate([image[None], moved, image[None]])[: None if fresh is not None else -1]

    def at(turn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        place, pixels = turn
        used = variables
        if fresh is not None:
            used = jax.tree.map(lambda old, new: jnp.where(place > samples, new, old), variables, fresh)
        logits_fn = networks.logits_fn(network, used)
        if forms.pixels is None:
            return forms.ranking(key, logits_fn, pixels), None
        explained = forms.signed(key, logits_fn, pixels)
        return forms.pixels(explained), explained

    maps, explained = jax.lax.map(at, (jnp.arange(len(images)), images))
    values, sensitivity = maps[0], faithfulness.largest_change(maps[0], maps[1 : samples + 1])
    said = {"map": values, "sensitivity": sensitivity, "smoothness": controls.smoothness(values)}
    if fresh is not None:
        said["randomisation"] = faithfulness.rank_correlation(values, maps[-1])
    if explained is not None:
        values = explained[0]
    elif forms.signed is not forms.ranking:
        values = forms.signed(key, networks.logits_fn(network, variables), image)
    return said, jnp.broadcast_to(values if values.ndim == 3 else values[..., None], image.shape)


def joined(parts: Sequence[Arrays], names: Sequence[str], images: np.ndarray) -> Arrays:
    """What was measured on several networks, `measure/...` `[network, attribution, image]`; some images and maps."""
    made = {f"measure/{name}": np.stack([one[name].swapaxes(0, 1) for one in parts]) for name in parts[0]}
    made["shown/maps"] = made.pop("measure/map")
    made["shown/test"] = np.asarray(data.scale(jnp.asarray(images[:SHOWN])), np.float16)
    return made | {"attributions": np.array(list(names))}


def of_networks(
    run: Run, names: Sequence[str], variables: Callable[[int], Any], test: data.Split, key: jax.Array, measure
) -> list[Arrays]:
    """The measures of each network, one after another; each is kept in the run's `analysis` and read from there.

    Args:
      run: whose.
      names: of the networks.
      variables: of one, by its place.
      test: images, of which the configuration says how many are used.
      key: of all that is random.
      measure: of `of_images`, or by a network's place.
    """
    some = test.take(run.config.measured_examples)
    keys = jax.random.split(key, len(some.labels))
    parts = []
    what = f"measuring {len(run.config.attributions)} attributions of {counted_networks(len(names))}"
    if run.meter:
        title, chunk = f"{len(run.config.attributions)} attributions of {len(keys)} images", run.config.chunk
        of = lambda few: measure(variables(0), *few)  # noqa: E731
        return [run.meter.few(title, of, (keys, some), chunk, len(names))] * len(names)
    for index, name in counted(names, what):
        path = run.workdir / "analysis" / f"measures-{name}.npz"
        part = runs.read_arrays(path)
        if part is None:
            part = measure(variables(index), keys, some)
            runs.write_arrays(path, part)
        parts.append(part)
    return parts


def of_gradients(run: Run, trained: runs.Classifiers, train: data.Split, test: data.Split) -> Arrays:
    """Of each network and image: fractions of the loss gradient, and ROAD of the gradient there and at another image.

    Fractions are along a plane of the training images, and along the manifold where it is known.
    """
    config, shape = run.config, run.image_shape
    some = test.take(config.measured_examples)
    planes = {"pca": manifolds.pca(manifolds.fit_pca(train.images, config.pca_dimensions))}
    if run.dataset.truth is not None:
        kind, settings = manifolds.KINDS["exact"], {"dataset": run.dataset.name}
        planes["exact"] = kind.manifold(shape, kind.fit(stages.used(run, train), settings), None, settings)  # type: ignore[misc]
    elsewhere = gradients.controls.of_another_image(gradients.gradient, data.scale(jnp.asarray(train.images[:500])))

    def of_image(_, variables, example):
        key, (pixels, label) = example
        image, own = data.scale(pixels), networks.logits_fn(trained.network, variables)
        slope = gradients.loss_gradient(own, image)
        said = {
            f"fraction/{name}": gradients.tangent_fraction(slope, plane.tangent_space(image).basis)
            for name, plane in planes.items()
        }
        maps = {"road": gradients.gradient(key, own, image), "road_elsewhere": elsewhere(key, own, image)}
        return said | {name: faithfulness.road(key, own, image, label, values).score for name, values in maps.items()}

    keys = jax.random.split(stages.key_of(config.seed, "gradients"), len(some.labels))
    return stages.per_example(run, trained, of_image, (keys, some))
