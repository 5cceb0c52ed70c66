"""A classifier as the rest of robgrad sees it: variables, logits in evaluation, logits in training.

To add a network is to write a linen module and name it in `NETWORKS`; a `Network` can also be made by hand, of
functions from any library.
"""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad import stacking
from robgrad.networks.classifiers import classifier_for
from robgrad.networks.residual import preact_resnet_18, wide_resnet

LogitsFn = Callable[[Array], Array]
Variables = dict[str, Any]
# What to sum the gradients of devices and to update the parameters costs, in passes over a batch (measured).
UPDATE = 14


class Network(NamedTuple):
    """A classifier of batches of images `[B, H, W, C]` in [-1, 1].

    Its variables are a dict of collections: `params`, which training descends, and any others, such as running
    statistics, which its training mode moves.

    Attributes:
      init: `(key, image_shape)` to variables.
      evaluate: `(variables, images)` to logits `[B, C]`; no example sees another.
      train: `(variables, images, weights)` to logits and the variables with what has moved; `weights` `[B]` are 1
        for an example and 0 for padding. May sum over the mapped axis `stacking.DATA`.
    """

    init: Callable[[Array, Sequence[int]], Variables]
    evaluate: Callable[[Variables, Array], Array]
    train: Callable[[Variables, Array, Array], tuple[Array, Variables]]


def _initial(module: nn.Module, key: Array, image_shape: tuple[int, ...], by_flag: bool) -> Any:
    at_rest: dict[str, Any] = {"train": False} if by_flag else {}
    return module.init(key, jnp.zeros((1, *image_shape)), **at_rest)


# One program, where operation by operation each would be compiled.
_compiled = jax.jit(_initial, static_argnums=(0, 2, 3))


def of_module(module: nn.Module | Network) -> Network:
    """The `Network` of a linen module that maps batches of images to logits; a `Network` passes as it is.

    In training the module is given `weights` if its `__call__` has a parameter of that name (as robgrad's own
    modules with batch norm), or else `train=True` if it has that one; collections other than `params` are mutable
    then, and read-only in evaluation. Statistics of modules with `train` are averaged over devices, padding included.
    """
    if isinstance(module, Network):
        return module
    nnx = sys.modules.get("flax.nnx")
    if nnx and isinstance(module, nnx.Module):
        raise ValueError(
            f"expected a linen module or a Network, got the NNX module {type(module).__name__}, which holds variables "
            "of its own; give networks.of_nnx(lambda rngs: ...), which builds it afresh"
        )
    accepted = inspect.signature(type(module).__call__).parameters
    weighted, by_flag = "weights" in accepted, "train" in accepted and "weights" not in accepted
    at_rest: dict[str, Any] = {"train": False} if by_flag else {}

    def init(key: Array, image_shape: Sequence[int]) -> Variables:
        asked = module, key, tuple(image_shape), bool(at_rest)
        try:
            hash(module)
        except TypeError:  # Attributes without a hash, such as lists, cannot name a program.
            return dict(_initial(*asked))
        return dict(_compiled(*asked))

    def evaluate(variables: Variables, images: Array) -> Array:
        return cast(Array, module.apply(variables, images, **at_rest))

    def train(variables: Variables, images: Array, weights: Array) -> tuple[Array, Variables]:
        moving = [name for name in variables if name != "params"]
        options: dict[str, Any] = {"weights": weights} if weighted else {"train": True} if by_flag else {}
        if not moving:
            return cast(Array, module.apply(variables, images, **options)), variables
        logits, moved = module.apply(variables, images, mutable=moving, **options)
        # Modules of others know nothing of the other devices' parts: what has moved there is averaged.
        moved = moved if weighted else lax.pmean(moved, stacking.DATA)
        return cast(Array, logits), {**variables, **moved}

    return Network(init, evaluate, train)


@dataclass(frozen=True, eq=False)
class OfOne:
    """A network as a function of one image, that says what it is made of."""

    network: nn.Module | Network
    variables: Variables

    def __call__(self, image: Array) -> Array:
        """Logits `[classes]` of an image `[H, W, C]`."""
        return of_module(self.network).evaluate(self.variables, image[None])[0]


def logits(network: nn.Module | Network, variables: Variables, images: Array) -> Array:
    """The network's logits `[B, classes]` in evaluation for a batch of images `[B, H, W, C]` in [-1, 1]."""
    return of_module(network).evaluate(variables, images)


def logits_fn(network: nn.Module | Network, variables: Variables) -> LogitsFn:
    """The network in evaluation as a function of one image `[H, W, C]`, as attacks and attributions take it.

    It is an `OfOne`, whose layers an attribution may look at.
    """
    return OfOne(network, variables)


def init(network: nn.Module | Network, key: Array, image_shape: Sequence[int]) -> Variables:
    """Initial variables for images `[H, W, C]`."""
    return of_module(network).init(key, image_shape)


def intensity(network: nn.Module | Network, image_shape: Sequence[int], attack_steps: int | None = None) -> float:
    """Operations for each parameter in a pass over one image, for `stacking.device_mesh`.

    Args:
      network: whose parameters.
      image_shape: `[H, W, C]`.
      attack_steps: where the network is trained, those of each training step's attack, 0 without one. A training step
        passes the parameters twice for each of them and three times for its own gradient; to sum the gradients of
        devices and to update the parameters reads them as often as `UPDATE` passes do, without their operations.
    """
    variables = jax.eval_shape(lambda: init(network, jax.random.key(0), image_shape))
    image = jax.ShapeDtypeStruct(tuple(image_shape), jnp.float32)
    once = stacking.intensity(lambda variables, image: logits_fn(network, variables)(image), variables, image)
    passes = math.inf if attack_steps is None else 2 * attack_steps + 3
    return once / (1 + UPDATE / passes)


# What experiments offer by flag: builders `(image_shape, classes) -> module`.
NETWORKS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "paper": classifier_for,
    "preact-resnet-18": lambda image_shape, classes: preact_resnet_18(classes),
    **{
        f"wide-resnet-{depth}-{width}": partial(
            lambda depth, width, image_shape, classes: wide_resnet(depth, width, classes), depth, width
        )
        for depth, width in ((10, 1), (16, 4), (28, 10))
    },
}


def network_named(name: str, image_shape: Sequence[int], classes: int) -> nn.Module:
    """The module of a name in `NETWORKS` for images `[H, W, C]`.

    Raises:
      ValueError: if there is no such name.
    """
    if name not in NETWORKS:
        raise ValueError(f"expected a network of {', '.join(NETWORKS)}, got '{name}'")
    return NETWORKS[name](image_shape, classes)
