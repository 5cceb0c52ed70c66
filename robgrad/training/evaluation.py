"""Predictions and accuracies of a stack of networks, clean and under attack."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from robgrad import stacking
from robgrad.attacks.pgd import Attack, check_moves, sizes_given
from robgrad.data import PIXEL_RANGE, Split, scale
from robgrad.data.calls import image_type, logits_of
from robgrad.data.checks import as_split, checked_count, checked_images, checked_labels, checked_radius, checked_split
from robgrad.networks import Network, logits_fn, of_module, predicted
from robgrad.training.objectives import StepSizes, check_range_of
from robgrad.training.optimizers import checked_sizes


def evaluate(network: nn.Module | Network, attack: Attack, mesh: Mesh, *, chunk: int = 100) -> Callable:
    """Compiles the predictions of a stack of networks under attack.

    Returns `run(variables, split, key, epsilon, step_size)` to labels `[S, N]`, the class that each network
    predicts for each image after an attack on that network at the true label; -1 where its logits are not finite.
    Images are bytes, or floating point in the pixel range of the attack, or [-1, 1] where it has none; labels are `[N]`
    or `[N, 1]`. Epsilon and step size are in pixel units, numbers or one an image `[N]`, and new ones compile nothing.
    They must be given where the attack needs them; with `attacks.no_attack`, clean predictions. It raises `DataError`
    or `ValueError` in one line for anything else.

    Args:
      network: of the stack.
      attack: made on each image.
      mesh: from `stacking.device_mesh`.
      chunk: images at a time.

    Raises:
      ValueError: if `chunk` is below 1.
    """
    checked_count("image in a chunk", chunk)
    pixel_range = getattr(attack, "pixel_range", PIXEL_RANGE)

    def predict(_, variables, example):
        key, pixels, label, *numbers = example
        own, image = logits_fn(network, variables), scale(pixels)
        return predicted(own(attack(key, own, image, label, *numbers)))

    run = stacking.per_example(predict, mesh, chunk)

    def on_split(variables, split: Split, key: Array, epsilon: Any = None, step_size: Any = None) -> Array:
        split = as_split(split)
        epsilon, step_size = sizes_given(attack, epsilon, step_size)
        images, count = np.asarray(split.images), len(split.images)
        if pixel_range == PIXEL_RANGE:  # Bytes stay bytes on their way to the device.
            images = checked_split(Split(images, split.labels), None, "data", as_images=False).images
        else:
            images = checked_images(images, pixel_range, as_images=False)
        one, shape = jax.eval_shape(lambda: stacking.replica(variables, 0)), images.shape[1:]
        logits = lambda variables, image: of_module(network).evaluate(variables, image[None])[0]  # noqa: E731
        dtype = image_type(logits, shape, images.dtype, one)
        images = images if images.dtype == np.uint8 else images.astype(dtype)
        labels = checked_labels(split.labels, count, logits_of(logits, shape, one, dtype=dtype).shape[0])
        given = {"epsilon": epsilon, "step_size": step_size}
        numbers = [checked_radius(name, value, count).astype(dtype) for name, value in given.items()]
        return run((), variables, (jax.random.split(key, count), images, labels, *numbers))

    return on_split


def held_out(
    network: nn.Module | Network, attack: Attack, split: Split, numbers: StepSizes, mesh: Mesh, *, chunk: int = 100
) -> Callable[[Any], np.ndarray]:
    """What `fit` takes as `score`: of a stack's variables, the share `[S]` of images held out that withstand an attack.

    Each network is attacked at its own radius and step size, the stack's `numbers`; at radius 0 it is clean accuracy.
    The attack's key is the same each time, so that epochs are compared on equal terms.

    Args:
      network: of the stack.
      attack: a short one, for instance `attacks.pgd("linf", attacks.cross_entropy, 10)`.
      split: images that training does not see.
      numbers: those of the training, `[S]` or scalars.
      mesh: from `stacking.device_mesh`.
      chunk: images at a time.

    Raises:
      DataError: if the images are ones that `data.check` refuses; when called, if labels are beyond the logits.
      ValueError: if the attack is of another pixel range than [-1, 1], or the numbers are none of radii and steps.
    """
    split = checked_split(as_split(split), None, "held out", as_images=False)
    check_range_of(attack)
    checked_sizes(numbers.epsilon, numbers.step_size, 0.0)
    check_moves(attack, numbers.epsilon, numbers.step_size)
    keys = jax.random.split(jax.random.key(0), len(split.labels))

    def hit(_, replica, example):
        (variables, epsilon, step_size), (key, pixels, label) = replica, example
        own, image = logits_fn(network, variables), scale(pixels)
        return predicted(own(attack(key, own, image, label, epsilon, step_size))) == label

    run = stacking.per_example(hit, mesh, chunk)

    def score(variables: Any) -> np.ndarray:
        count = stacking.size(variables)
        one = jax.eval_shape(lambda: stacking.replica(variables, 0))
        images = jax.eval_shape(lambda: scale(jnp.asarray(split.images[:1])))
        logits = lambda variables, image: of_module(network).evaluate(variables, image[None])[0]  # noqa: E731
        classes = logits_of(logits, images.shape[1:], one, dtype=images.dtype).shape[0]
        checked_labels(split.labels, len(split.labels), classes)
        sizes = [jnp.broadcast_to(jnp.asarray(one), (count,)) for one in (numbers.epsilon, numbers.step_size)]
        return np.mean(np.asarray(run((), (variables, *sizes), (keys, *split))), axis=1)

    return score


def accuracies(network: nn.Module | Network, attack: Attack, mesh: Mesh, chunk: int = 100) -> Callable[..., np.ndarray]:
    """`evaluate` as accuracies: `run(variables, split, key, epsilon, step_size)` to the share of right labels `[S]`."""
    predict = evaluate(network, attack, mesh, chunk=chunk)

    def run(variables, split: Split, key: Array, epsilon: Any = None, step_size: Any = None) -> np.ndarray:
        split = as_split(split)
        predictions = np.asarray(predict(variables, split, key, epsilon, step_size))
        return np.mean(predictions == np.asarray(split.labels).reshape(len(split.labels)), axis=1)

    return run
