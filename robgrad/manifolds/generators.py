"""The VAE-GAN's networks (Larsen et al., 2016), as the paper has them: linen modules over batches in [-1, 1].

Batch norm follows the activation, with epsilon 1e-3 and momentum 0.99.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.networks.classifiers import Conv
from robgrad.networks.layers import Padding, conv
from robgrad.networks.normalisation import BatchNorm

_GLOROT = nn.initializers.glorot_uniform()


class Encoder(nn.Module):
    """Strided convolutions (ReLU, batch norm), then a normalised dense layer: mean and log-variance of the code."""

    features: Sequence[int]
    window: int
    latent: int

    @nn.compact
    def __call__(self, images: Array, weights: Array | None = None) -> tuple[Array, Array]:
        """Maps images to `(mean, log_variance)`, each `[B, latent]`."""
        for features in self.features:
            images = BatchNorm()(nn.relu(Conv(features, self.window, 2)(images)), weights)
        flat = images.reshape(len(images), -1)
        moments = BatchNorm()(nn.Dense(2 * self.latent, kernel_init=_GLOROT)(flat), weights)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, log_variance


class Layer(NamedTuple):
    """One convolution of a decoder (transposed) or a discriminator."""

    features: int
    window: int
    stride: int
    padding: Padding = "SAME"


class Decoder(nn.Module):
    """Dense to a small map, transposed convolutions (each ReLU, batch norm), a last layer with tanh.

    Attributes:
      base: height, width and features of the small map.
      hidden: the transposed convolutions.
      last: the layer that makes the image, transposed only if its stride is above 1.
      crop: height and width cut out of the middle at the end; None for all of it.
    """

    base: tuple[int, int, int]
    hidden: Sequence[Layer]
    last: Layer
    crop: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, codes: Array, weights: Array | None = None) -> Array:
        """Maps codes `[B, latent]` to images in (-1, 1)."""
        height, width, features = self.base
        dense = nn.Dense(height * width * features, kernel_init=_GLOROT)(codes)
        images = BatchNorm()(nn.relu(dense), weights).reshape(-1, *self.base)
        for layer in self.hidden:
            images = BatchNorm()(nn.relu(Conv(*layer, transpose=True)(images)), weights)
        images = jnp.tanh(Conv(*self.last, transpose=self.last.stride > 1)(images))
        height, width = self.crop or images.shape[1:3]
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        return images[:, top : top + height, left : left + width]


class Discriminator(nn.Module):
    """Convolutions (ReLU, and batch norm but for the first), one normalised dense layer, one logit of 'real'."""

    hidden: Sequence[Layer]
    dense: int

    @nn.compact
    def __call__(self, images: Array, weights: Array) -> Array:
        """Maps images to logits `[B]`."""
        for index, layer in enumerate(self.hidden):
            images = nn.relu(Conv(*layer)(images))
            images = BatchNorm()(images, weights) if index else images
        flat = nn.relu(nn.Dense(self.dense, kernel_init=_GLOROT)(images.reshape(len(images), -1)))
        return nn.Dense(1, kernel_init=_GLOROT)(BatchNorm()(flat, weights))[:, 0]


class SpectralConv(nn.Module):
    """A convolution divided by max(sigma, 1), sigma its largest singular value (Miyato et al., 2018).

    Estimated by one power iteration a call through the convolution itself, not through its kernel
    reshaped to a matrix; the left singular vector is kept in the collection `spectral`, and moved only
    where that is mutable.
    """

    layer: Layer

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Applies the normalised layer to `[B, H, W, I]`."""
        features, window, stride, padding = self.layer
        kernel = self.param("kernel", _GLOROT, (window, window, images.shape[-1], features))
        bias = self.param("bias", nn.initializers.zeros, (features,))

        def apply(inputs: Array, kernel: Array) -> Array:
            return conv(inputs, kernel, stride, padding)

        one = jnp.zeros((1, *images.shape[1:]))
        start = lambda: _unit(jax.random.normal(self.make_rng("params"), jax.eval_shape(apply, one, kernel).shape))  # noqa: E731
        left = self.variable("spectral", "left", start)
        frozen = lax.stop_gradient(kernel)
        right = _unit(jax.vjp(lambda inputs: apply(inputs, frozen), one)[1](left.value)[0])
        moved = _unit(apply(right, frozen))
        if self.is_mutable_collection("spectral") and not self.is_initializing():
            left.value = moved
        sigma = jnp.vdot(moved, apply(right, kernel))
        return apply(images, kernel / jnp.maximum(sigma, 1.0)) + bias


class SpectralDiscriminator(nn.Module):
    """Spectrally normalised convolutions with leaky ReLU of slope 0.1, one dense logit of 'real'; no batch norm."""

    hidden: Sequence[Layer]

    @nn.compact
    def __call__(self, images: Array, weights: Array) -> Array:
        """Maps images to logits `[B]`."""
        for layer in self.hidden:
            images = nn.leaky_relu(SpectralConv(layer)(images), 0.1)
        return nn.Dense(1, kernel_init=_GLOROT)(images.reshape(len(images), -1))[:, 0]


class VaeGan(NamedTuple):
    """The three networks and what is fixed in their training; numbers are in `VaeGanSizes`.

    Attributes:
      latent: dimension of the code.
      betas: decay rates of the three Adams.
      discriminator_steps: discriminator steps a step.
    """

    encoder: nn.Module
    decoder: nn.Module
    discriminator: nn.Module
    latent: int
    betas: tuple[float, float] = (0.5, 0.9)
    discriminator_steps: int = 1


def digits_vae_gan(latent: int = 10) -> VaeGan:
    """A small one for 8x8x1 images, in the shape of the 28x28 networks."""
    decoder = Decoder((2, 2, 128), (Layer(64, 4, 2),), Layer(1, 4, 2))
    discriminator = Discriminator((Layer(32, 4, 2), Layer(64, 4, 2)), 128)
    return VaeGan(Encoder((32, 64), 4, latent), decoder, discriminator, latent)


def mnist_vae_gan(latent: int = 10) -> VaeGan:
    """The paper's networks for 28x28x1 images."""
    hidden = (Layer(256, 4, 2), Layer(128, 4, 1, "VALID"), Layer(32, 4, 2))
    decoder = Decoder((2, 2, 256), hidden, Layer(1, 4, 2))
    discriminator = Discriminator((Layer(32, 4, 2), Layer(128, 4, 2), Layer(256, 4, 2), Layer(256, 4, 2)), 512)
    return VaeGan(Encoder((64, 128, 256), 4, latent), decoder, discriminator, latent)


def cifar_vae_gan(latent: int = 128, channels: int = 3) -> VaeGan:
    """The paper's networks for 32x32x3 images."""
    decoder = Decoder((4, 4, 512), (Layer(256, 4, 2), Layer(128, 4, 2), Layer(64, 4, 2)), Layer(channels, 3, 1))
    stages = ((64, 64), (128, 128), (256, 256))
    hidden = [layer for one, two in stages for layer in (Layer(one, 3, 1), Layer(two, 4, 2))]
    discriminator = SpectralDiscriminator((*hidden, Layer(512, 3, 1)))
    encoder = Encoder((64, 128, 256), 5, latent)
    return VaeGan(encoder, decoder, discriminator, latent, (0.0, 0.9), discriminator_steps=5)


def vae_gan_for(image_shape: Sequence[int]) -> VaeGan:
    """The VAE-GAN for images `[H, W, C]`: the paper's for 28x28x1 and 32x32xC, else one in the shape of the former."""
    match tuple(image_shape):
        case (8, 8, 1):
            return digits_vae_gan()
        case (28, 28, 1):
            return mnist_vae_gan()
        case (32, 32, channels):
            return cifar_vae_gan(channels=channels)
    return sized_vae_gan(image_shape)


def sized_vae_gan(image_shape: Sequence[int], latent: int = 10) -> VaeGan:
    """A VAE-GAN for any images of 8x8 pixels or more: halved until 4 pixels or fewer are left a side, and back.

    Raises:
      ValueError: for smaller images.
    """
    height, width, channels = image_shape
    if min(height, width) < 8:
        raise ValueError(f"expected images of at least 8x8 pixels, got {height}x{width}; build a VaeGan of your own")
    halvings = max(1, math.ceil(math.log2(max(height, width) / 4)))
    widths = tuple(min(256, 32 * 2**index) for index in range(halvings))
    base = (-(-height // 2**halvings), -(-width // 2**halvings), 2 * widths[-1])
    decoder = Decoder(base, tuple(Layer(w, 4, 2) for w in widths[:0:-1]), Layer(channels, 4, 2), (height, width))
    discriminator = Discriminator(tuple(Layer(w, 4, 2) for w in widths), 128)
    return VaeGan(Encoder(widths, 4, latent), decoder, discriminator, latent)


def _unit(array: Array) -> Array:
    return array / jnp.maximum(jnp.linalg.norm(jnp.ravel(array)), 1e-12)
