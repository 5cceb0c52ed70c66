"""Networks written in Flax NNX, whose modules carry their variables with them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad import stacking
from robgrad.networks.convolutions import with_fast_convolutions
from robgrad.networks.network import Network, Variables

if TYPE_CHECKING:
    from flax import nnx


def of_nnx(build: "Callable[[nnx.Rngs], nnx.Module]") -> Network:
    """The `Network` of an NNX module of batches of images `[B, H, W, C]`, for training and retraining.

    `nnx.Param` is what training descends; the rest (batch statistics, dropout's counters) is what its training mode
    moves, floating-point values averaged over devices, padding included. A trained module of one's own needs none of
    this to be attacked or analysed: `lambda image: module(image[None])[0]` is the function of one image.

    Args:
      build: random streams to a fresh module, for instance `lambda rngs: Net(rngs=rngs)`.

    Raises:
      ValueError: if it is a module.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from robgrad import networks
      >>> flat = lambda images: images.reshape(len(images), -1)
      >>> network = networks.of_nnx(lambda rngs: nnx.Sequential(flat, nnx.Linear(4, 3, rngs=rngs)))
      >>> variables = networks.init(network, jax.random.key(0), (2, 2, 1))
      >>> networks.logits(network, variables, jax.numpy.zeros((5, 2, 2, 1))).shape
      (5, 3)
    """
    from flax import nnx  # It takes a while to import, and few need it.

    if isinstance(build, nnx.Module):
        raise ValueError(
            f"expected a function of random streams that builds a module, got a {type(build).__name__}: give "
            "lambda rngs: Net(rngs=rngs), or, for a trained module that is to be judged, lambda image: "
            "module(image[None])[0] in the network's place"
        )
    structure, *abstract = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param, ...)

    def parts(module: "nnx.Module") -> Variables:
        _, *states = nnx.split(module, nnx.Param, ...)
        return {name: nnx.to_pure_dict(state) for name, state in zip(("params", "rest"), states, strict=True)}

    def whole(variables: Variables) -> Any:
        states = jax.tree.map(lambda leaf: leaf, tuple(abstract))
        for state, name in zip(states, ("params", "rest"), strict=True):
            nnx.replace_by_pure_dict(state, variables[name])
        return nnx.merge(structure, *states)

    def init(key: Array, image_shape: Sequence[int]) -> Variables:
        del image_shape
        return parts(build(nnx.Rngs(key)))

    @with_fast_convolutions
    def evaluate(variables: Variables, images: Array) -> Array:
        module = whole(variables)
        module.eval()
        return module(images)

    @with_fast_convolutions
    def trained(variables: Variables, images: Array) -> tuple[Array, Variables]:
        module = whole(variables)
        module.train()
        return module(images), parts(module)["rest"]

    def train(variables: Variables, images: Array, weights: Array) -> tuple[Array, Variables]:
        del weights
        logits, rest = trained(variables, images)
        mean = lambda leaf: lax.pmean(leaf, stacking.DATA) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf  # noqa: E731
        return logits, {**variables, "rest": jax.tree.map(mean, rest)}

    return Network(init, evaluate, train)
