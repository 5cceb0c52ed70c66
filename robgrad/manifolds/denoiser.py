"""A denoiser as an estimate of the manifold: what it leaves of noise is where the data lie.

The denoiser of least squared error, D(x, s) = E[clean | x] for noise of standard deviation s, is
x + s^2 grad log p_s(x) (Miyasawa, 1961; Vincent, 2011), p_s the density of noised images. Repeated with falling s it
carries an image to the manifold, and its Jacobian, a symmetric matrix, has eigenvalues near 1 along the manifold and
near 0 across (Alain and Bengio, 2014; Mohan et al., 2020).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from robgrad import stacking
from robgrad.data import scale
from robgrad.data.checks import checked_count, checked_positive
from robgrad.manifolds.eigen import leading_directions
from robgrad.manifolds.geometry import Manifold, TangentSpace
from robgrad.networks import Conv
from robgrad.training import Batch, Optimizer, Step, TrainState, plain_adam, updated

# Standard deviation of the data that the network's input and output are scaled for, in pixel units.
SPREAD = 0.5
# Noise in training: its logarithm uniform between these standard deviations.
LEAST, MOST = 0.03, 1.0


class Denoiser(nn.Module):
    """A small U-shaped network: two halvings, a dense layer that sees the whole image, and back with shortcuts.

    Attributes:
      widths: features at each of the three sizes.
      context: features of the dense layer.
    """

    widths: tuple[int, int, int] = (8, 16, 32)
    context: int = 128

    @nn.compact
    def __call__(self, images: Array, noise: Array) -> Array:
        """Clean images of noised ones `[B, H, W, C]` in [-1, 1], given the noise's standard deviation `[B]`.

        The network F is wrapped as by Karras et al. (2022), so that it is asked for outputs of one size at all levels:
        D(x, s) = c x + e F(x / sqrt(s^2 + d^2), log s), c = d^2 / (s^2 + d^2), e = s d / sqrt(s^2 + d^2), d = `SPREAD`.
        """
        noise = noise[:, None, None, None]
        total = jnp.sqrt(noise**2 + SPREAD**2)
        level = jnp.broadcast_to(jnp.log(noise) / 2, (*images.shape[:3], 1))
        sizes = [jnp.concatenate([images / total, level], axis=-1)]
        for index, width in enumerate(self.widths):
            window, stride = (4, 2) if index else (3, 1)
            sizes.append(nn.silu(Conv(width, window, stride)(sizes[-1])))
        inner = sizes[-1]
        seen = nn.silu(nn.Dense(self.context)(inner.reshape(len(inner), -1)))
        inner = inner + nn.Dense(inner[0].size)(seen).reshape(inner.shape)
        for width, outer in zip(self.widths[1::-1], sizes[-2:0:-1], strict=True):
            wider = Conv(width, 4, 2, transpose=True)(nn.silu(inner))[:, : outer.shape[1], : outer.shape[2]]
            inner = nn.silu(Conv(width, 3)(nn.silu(wider) + outer))
        made = Conv(images.shape[-1], 3)(inner)
        return SPREAD**2 / total**2 * images + noise * SPREAD / total * made


class DenoiserSizes(NamedTuple):
    """Numbers of a step."""

    learning_rate: Array | float | None


_ADAM = plain_adam()


def init_denoiser(
    network: Denoiser,
    image_shape: Sequence[int],
    key: Array,
    optimizer: Optimizer | optax.GradientTransformation = _ADAM,
) -> TrainState:
    """Fresh variables and the optimizer's state, by default Adam's."""
    return _initial(network, tuple(image_shape), optimizer, key)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _initial(
    network: Denoiser,
    image_shape: tuple[int, ...],
    optimizer: Optimizer | optax.GradientTransformation,
    key: Array,
) -> TrainState:
    first, rest = jax.random.split(key)
    variables = network.init(first, jnp.zeros((1, *image_shape)), jnp.ones(1))
    moments = optimizer.init(variables["params"])
    return TrainState(variables, moments, rest, jnp.zeros((), jnp.int32))


def denoiser_step(network: Denoiser, optimizer: Optimizer | optax.GradientTransformation = _ADAM) -> Step:
    """The step of `training.fit` for a denoiser; data with a leaf `images`, numbers as in `DenoiserSizes`.

    Descends the mean over images and pixels of (D(x + s z, s) - x)^2 / e^2, z normal, log s uniform in `LEAST`..`MOST`,
    e as in `Denoiser`, so that all levels weigh alike. Its metric is `error`, that mean. The optimizer is as in
    `training.classifier_step`, the same as the states began with.
    """

    def step(state: TrainState, numbers: DenoiserSizes, batch: Batch):
        clean = scale(batch.examples.images)
        share = batch.weights / stacking.summed(batch.weights.sum())

        def noised(key: Array, image: Array) -> tuple[Array, Array]:
            one, two = jax.random.split(key)
            noise = jnp.exp(jax.random.uniform(one, minval=jnp.log(LEAST), maxval=jnp.log(MOST)))
            return image + noise * jax.random.normal(two, image.shape), noise

        images, noise = jax.vmap(noised)(batch.keys, clean)

        def error(params) -> Array:
            denoised = cast(Array, network.apply({"params": params}, images, noise))
            weight = (noise**2 + SPREAD**2) / (noise * SPREAD) ** 2
            return jnp.sum(share * weight * jnp.mean((denoised - clean) ** 2, axis=(1, 2, 3)))

        value, gradients = jax.value_and_grad(error)(state.variables["params"])
        value, gradients = stacking.summed((value, gradients))
        params = state.variables["params"]
        params, moments = updated(optimizer, gradients, state.opt_state, params, learning_rate=numbers.learning_rate)
        return state._replace(variables={"params": params}, opt_state=moments, step=state.step + 1), {"error": value}

    return step


def from_denoiser(network: Denoiser, variables, noise: float = 0.3, steps: int = 5, dimensions: int = 16) -> Manifold:
    """The manifold of a trained denoiser.

    An image is projected by denoising it again and again, the noise that is assumed falling from `noise` to a fifth of
    it. The tangent space there is spanned by the leading eigenvectors of the Jacobian, for the noise s = `noise`,
    whose eigenvalues are above 1/2: for data of variance v along a direction the best denoiser's is
    v / (v + s^2), so that these are the directions in which the data vary more than the noise.

    Args:
      network: its architecture.
      variables: `TrainState.variables` of one replica.
      noise: standard deviation of the first denoising, in pixel units.
      steps: denoisings.
      dimensions: most directions of a tangent space.

    Raises:
      ValueError: if the noise is not above 0, or there are no steps or dimensions.
    """
    checked_positive("a standard deviation of noise", noise)
    checked_count("denoising", steps)
    checked_count("dimension", dimensions)
    levels = noise * 0.2 ** (jnp.arange(steps) / max(steps - 1, 1))

    def denoise(image: Array, level: Array) -> Array:
        return cast(Array, network.apply(variables, image[None], level[None].astype(image.dtype)))[0].astype(
            image.dtype
        )

    def project(image: Array) -> Array:
        return lax.scan(lambda x, level: (denoise(x, level), None), image, levels)[0]

    def tangent(image: Array) -> TangentSpace:
        at = project(image)
        _, pull_back = jax.vjp(lambda x: denoise(x, levels[0]), at)

        def transposed(block: Array) -> Array:
            # Two columns at a time: all at once, for a batch of images, leave the processor's caches.
            columns = lax.map(lambda u: jnp.ravel(pull_back(u.reshape(image.shape))[0]), block.T, batch_size=2)
            return columns.T

        count = min(dimensions, image.size)
        basis, eigenvalues = leading_directions(transposed, image.size, count, iterations=5, dtype=image.dtype)
        within = eigenvalues > 0.5
        return TangentSpace(jnp.where(within, basis, 0.0), jnp.sum(within, dtype=jnp.int32))

    return Manifold(project, tangent)
