"""Networks computed in other ways, for `experiments.benchmark`: in bfloat16, by `lax`'s own layers."""

import contextlib
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from robgrad.networks import Network, Variables, layers, of_module


def half(module: nn.Module) -> Network:
    """A network in bfloat16, its variables and what it returns in float32."""
    network = of_module(module)

    def evaluate(variables: Variables, images: jax.Array) -> jax.Array:
        halved = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (variables, images))
        return jnp.asarray(network.evaluate(*halved), jnp.float32)

    return Network(network.init, evaluate, lambda variables, images, weights: (evaluate(variables, images), variables))


@contextlib.contextmanager
def plain_lax():
    """Networks built and traced within use `lax`'s own convolution and pooling."""

    def conv(images, kernel, stride=1, padding="SAME"):
        strides = (stride, stride)
        return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def max_pool(images, window=2):
        size = (1, window, window, 1)
        return lax.reduce_window(images, -jnp.inf, lax.max, size, size, "VALID")

    with mock.patch.object(layers, "conv", conv), mock.patch.object(layers, "max_pool", max_pool):
        yield
