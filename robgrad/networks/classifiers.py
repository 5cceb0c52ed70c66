"""The paper's classifiers as pure linen modules: `init(key, images)` and `apply(variables, images)`.

They map images `[B, ...]` in [-1, 1] to unnormalised logits `[B, classes]`, with Glorot-uniform
kernels, zero biases and ReLU; no dropout and no batch norm, so that no example sees another.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from robgrad.networks import layers

_GLOROT = nn.initializers.glorot_uniform()


class Conv(nn.Module):
    """A convolution (or its transpose) through `networks.layers`; `[B, H, W, I]` to `[B, H', W', features]`."""

    features: int
    window: int
    stride: int = 1
    padding: layers.Padding = "SAME"
    transpose: bool = False
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = _GLOROT

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Applies the layer."""
        shape = (self.window, self.window, images.shape[-1], self.features)
        images, kernel = nn.dtypes.promote_dtype(images, self.param("kernel", self.kernel_init, shape, jnp.float32))
        convolve = layers.conv_transpose if self.transpose else layers.conv
        convolved = convolve(images, kernel, self.stride, self.padding)
        if not self.use_bias:
            return convolved
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return layers.add_bias(*nn.dtypes.promote_dtype(convolved, bias))


class MLP(nn.Module):
    """Dense layers with ReLU between; the default is the paper's toy network (dense 128, dense 2)."""

    hidden: Sequence[int] = (128,)
    classes: int = 2

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[B, ...]` to logits `[B, classes]`."""
        activations = images.reshape(len(images), -1)
        for features in self.hidden:
            activations = nn.relu(nn.Dense(features, kernel_init=_GLOROT)(activations))
        return nn.Dense(self.classes, kernel_init=_GLOROT)(activations)


class CNN(nn.Module):
    """Stages of convolutions, each closed by a 2x2 max-pool where there are two pixels, then a dense layer and logits.

    Attributes:
      stages: for each stage the feature counts of its convolutions.
      window: side of every kernel (stride 1, SAME).
      dense: width of the hidden dense layer.
      classes: number of logits.
    """

    stages: Sequence[Sequence[int]]
    window: int
    dense: int
    classes: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps `[B, H, W, C]` to logits `[B, classes]`."""
        for stage in self.stages:
            for features in stage:
                images = nn.relu(Conv(features, self.window)(images))
            # Of one pixel there is nothing to take the largest of.
            images = layers.max_pool(images) if min(images.shape[1:3]) > 1 else images
        return MLP((self.dense,), self.classes)(images)


def digits_cnn(classes: int = 10) -> CNN:
    """A small network for 8x8 images: conv 3x3x16, conv 3x3x32, pool, dense 64."""
    return CNN(((16, 32),), 3, 64, classes)


def mnist_cnn(classes: int = 10) -> CNN:
    """The paper's MNIST and Fashion-MNIST network: conv 5x5x32, conv 5x5x64, pool, dense 1024."""
    return CNN(((32, 64),), 5, 1024, classes)


def cifar_cnn(classes: int = 10) -> CNN:
    """The paper's CIFAR-10 network: two conv 3x3x32, pool, two conv 3x3x64, pool, dense 512."""
    return CNN(((32, 32), (64, 64)), 3, 512, classes)


def classifier_for(image_shape: Sequence[int], classes: int) -> CNN:
    """The paper's network for images `[H, W, C]` of this size: up to 16, up to 28, or more pixels a side."""
    side = max(image_shape[:2])
    build = digits_cnn if side <= 16 else mnist_cnn if side <= 28 else cifar_cnn
    return build(classes)
