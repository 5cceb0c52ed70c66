"""Networks written in Equinox, whose modules are pytrees and map one image."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array

from robgrad.networks.convolutions import with_fast_convolutions
from robgrad.networks.network import Network, Variables


def of_equinox(build: Callable[[Array], Any]) -> Network:
    """The `Network` of an Equinox module of one image `[H, W, C]`, for training and retraining.

    Training descends its floating-point arrays; what else it holds stays as it was built. For modules whose call
    takes an image alone: batch norm and dropout, which want a state or a key, are not among them. A trained module
    of one's own is a function of one image and needs none of this to be attacked or analysed.

    Args:
      build: random key to a fresh module, for instance `lambda key: Net(key=key)`.

    Example:
      >>> import equinox, jax
      >>> from robgrad import networks
      >>> network = networks.of_equinox(lambda key: equinox.nn.Sequential([
      ...     equinox.nn.Lambda(lambda image: image.ravel()), equinox.nn.Linear(4, 3, key=key)]))
      >>> variables = networks.init(network, jax.random.key(0), (2, 2, 1))
      >>> networks.logits(network, variables, jax.numpy.zeros((5, 2, 2, 1))).shape
      (5, 3)
    """
    import equinox  # Not among what robgrad installs.

    _, structure = equinox.partition(equinox.filter_eval_shape(build, jax.random.key(0)), _is_array)

    def init(key: Array, image_shape: Sequence[int]) -> Variables:
        del image_shape
        trained, rest = equinox.partition(build(key), equinox.is_inexact_array)
        return {"params": trained, "rest": equinox.filter(rest, equinox.is_array)}

    def evaluate(variables: Variables, images: Array) -> Array:
        module = equinox.combine(variables["params"], variables["rest"], structure)
        return with_fast_convolutions(jax.vmap(module))(images)

    def train(variables: Variables, images: Array, weights: Array) -> tuple[Array, Variables]:
        del weights
        return evaluate(variables, images), variables

    return Network(init, evaluate, train)


def _is_array(leaf: Any) -> bool:
    """Whether a leaf of the abstract module is an array, which `init` gives."""
    return isinstance(leaf, jax.ShapeDtypeStruct)
