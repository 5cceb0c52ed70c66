"""Predictions and accuracies of a stack of networks, clean and under attack."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from robgrad import stacking
from robgrad.attacks import Attack
from robgrad.data import Split, scale
from robgrad.networks import Network, logits_fn


def evaluate(network: nn.Module | Network, attack: Attack, mesh: Mesh, *, chunk: int = 100) -> Callable:
    """Compiles the predictions of a stack of networks under attack.

    Returns `run(variables, split, key, epsilon, step_size)` to labels `[S, N]`, the class that each network
    predicts for each image after an attack on that network at the true label. Epsilon and step size are
    scalars in pixel units, and new ones compile nothing. With `attacks.no_attack`, clean predictions.
    """

    def predict(numbers, variables, example):
        key, (image, label) = example
        own = logits_fn(network, variables)
        return jnp.argmax(own(attack(key, own, scale(image), label, *numbers)))

    run = stacking.per_example(predict, mesh, chunk)

    def on_split(variables, split: Split, key: Array, epsilon: float = 0.0, step_size: float = 0.0) -> Array:
        keys = jax.random.split(key, len(split.labels))
        return run((jnp.float32(epsilon), jnp.float32(step_size)), variables, (keys, split))

    return on_split


def accuracies(network: nn.Module | Network, attack: Attack, mesh: Mesh, chunk: int = 100) -> Callable[..., np.ndarray]:
    """`evaluate` as accuracies: `run(variables, split, key, epsilon, step_size)` to the share of right labels `[S]`."""
    predict = evaluate(network, attack, mesh, chunk=chunk)

    def run(variables, split: Split, key: Array, epsilon: float = 0.0, step_size: float = 0.0) -> np.ndarray:
        return np.mean(np.asarray(predict(variables, split, key, epsilon, step_size)) == split.labels, axis=1)

    return run
