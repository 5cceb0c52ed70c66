"""Networks computed in other ways, for `experiments.benchmark`: in bfloat16, by `lax`'s own layers."""

import contextlib
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from robgrad import layers


class Half:
    """A network in bfloat16, its parameters and what it returns in float32."""

    def __init__(self, model: nn.Module):
        """Wraps a linen module."""
        self.model = model

    def apply(self, variables, images):
        """As `nn.Module.apply`."""
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (variables, images))
        return jnp.asarray(self.model.apply(*half), jnp.float32)


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
