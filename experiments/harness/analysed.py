"""Networks measured against a manifold: attacked images and loss gradients of every test image."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.harness.config import blocks, losses_of
from experiments.harness.progress import counted
from experiments.harness.trained import Run
from robgrad import attacks, data, gradients, manifolds, networks, runs, stacking

# Images whose attacked versions and gradients are kept for figures.
SHOWN = 10


def analyser(config: Any, network, image_shape: Sequence[int], loss: attacks.Loss, mesh):
    """Compiles the measurement of one test image on one network, for all of both."""
    attack = attacks.ATTACKS[config.analysis_attack](attacks.L2, loss, config.analysis_steps)
    kind = manifolds.KINDS[config.manifold]

    def analyse(shared, variables, example):
        arrays, standard_variables, epsilon, step_size = shared
        (key, (pixels, label)), tangent = example
        image = data.scale(pixels)
        attack_key, sampling_key = jax.random.split(key)
        own, standard = (networks.logits_fn(network, given) for given in (variables, standard_variables))
        attacked = attack(attack_key, own, image, label, epsilon, step_size)
        surface = kind.manifold(image_shape, arrays, sampling_key if config.sampled_projection else None)
        aligned = gradients.align(own, surface, image, attacked, loss=loss, tangent=tangent)
        return {
            **{name: getattr(aligned, name) for name in ("gradient_norm", "tangent_fraction", "chance")},
            **{name: getattr(aligned, name) for name in ("distance", "attacked_distance")},
            "own": own(image).argmax() != own(attacked).argmax(),
            "transfer": standard(image).argmax() != standard(attacked).argmax(),
            "attacked": attacked,
            "gradient": -gradients.loss_gradient(own, image),
        }

    return stacking.per_example(analyse, mesh, config.chunk)


def tangent_spaces(config: Any, image_shape: Sequence[int]):
    """Compiles the tangent space at each image; they are the same for all networks and losses."""
    kind = manifolds.KINDS[config.manifold]

    def at(_, arrays, pixels):
        return kind.manifold(image_shape, arrays, None).tangent_space(data.scale(pixels))

    run = stacking.per_example(at, stacking.device_mesh(1, config.chunk), config.chunk)
    return lambda arrays, images: stacking.replica(run((), stacking.stack([arrays]), images), 0)


def fields_of(run: Run, network, variables, arrays, test: data.Split, key) -> dict[str, dict[str, np.ndarray]]:
    """What is measured of all test images on all networks `[network, image]`, for each analysis loss.

    A block of images comes after another; each is saved in the run's `analysis` and, where it was saved before, read
    from there. Attacked images and gradients are kept of the first images only.
    """
    config, shape = run.config, run.image_shape
    mesh = stacking.device_mesh(stacking.size(variables), config.chunk)
    tangents = tangent_spaces(config, shape)
    compiled = {name: analyser(config, network, shape, loss, mesh) for name, loss in losses_of_analysis(config).items()}
    shared = (arrays, stacking.replica(variables, 0), config.analysis_epsilon, config.analysis_step_size)
    keys = jax.random.split(key, len(test.labels))
    parts: dict[str, list] = {name: [] for name in compiled}
    every = list(blocks(len(test.labels), 5 * config.chunk))
    for block, rows in counted(every, f"analysing {len(test.labels)} images, {stacking.size(variables)} networks"):
        images, tangent = data.Split(*(leaf[rows] for leaf in test)), None
        for name, analyse in compiled.items():
            path = run.workdir / "analysis" / f"{name}-{block}.npz"
            part = runs.read_arrays(path)
            if part is None:
                tangent = tangents(arrays, images.images) if tangent is None else tangent
                part = jax.device_get(analyse(shared, variables, ((keys[rows], images), tangent)))
                kept = 0 if block else SHOWN
                part |= {field: part[field][:, :kept] for field in ("attacked", "gradient")}
                runs.write_arrays(path, part)
            parts[name].append(part)
    join = lambda *leaves: np.concatenate(leaves, axis=1)[:, : len(test.labels)]  # noqa: E731
    return {name: jax.tree.map(join, *pieces) for name, pieces in parts.items()}


def losses_of_analysis(config: Any) -> dict[str, attacks.Loss]:
    """The losses of the analysis attacks, the margin unbounded."""
    return {name: losses_of(config, bound=np.inf)[name] for name in config.analysis_losses}
