"""The image manifold as an encoder and a decoder of one image: projection, distance, tangent space."""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad import generative
from robgrad.attacks import length


class Manifold(NamedTuple):
    """An estimate of the image manifold: `encode` one image `[...]` to a code `[z]`, `decode` it back.

    Any pair of differentiable functions will do. `decode` must be differentiable twice by reverse mode.
    """

    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]


def from_vae_gan(model: generative.VaeGan, variables, sampling_key: Array | None = None) -> Manifold:
    """The manifold of a trained VAE-GAN: the encoder's mean and the decoder, at running statistics.

    Args:
      model: its networks.
      variables: `TrainState.params` of one replica.
      sampling_key: if given, codes are sampled around the mean instead, as the paper's code did; the
        same key gives every image the same noise, so give each image its own.
    """

    def encode(image: Array) -> Array:
        mean, log_variance = cast(tuple[Array, Array], model.encoder.apply(variables["encoder"], image[None]))
        if sampling_key is None:
            return mean[0]
        return mean[0] + jnp.exp(0.5 * log_variance[0]) * jax.random.normal(sampling_key, mean[0].shape)

    def decode(code: Array) -> Array:
        return cast(Array, model.decoder.apply(variables["decoder"], code[None]))[0]

    return Manifold(encode, decode)


class TangentSpace(NamedTuple):
    """Orthonormal `basis` `[pixels, z]`, whose columns from `rank` on are zero, and `rank` (int32)."""

    basis: Array
    rank: Array


def project(manifold: Manifold, image: Array) -> Array:
    """The projection decode(encode(x)) of one image onto the manifold."""
    return manifold.decode(manifold.encode(image))


def distance(manifold: Manifold, image: Array) -> Array:
    """The l2 distance ||x - decode(encode(x))|| of one image to its projection, in pixel units."""
    return length(image - project(manifold, image))


def decoder_jacobian(decode: Callable[[Array], Array], code: Array) -> Array:
    """Jacobian `[pixels, z]` of a decoder at a code `[z]`.

    Forward mode is right for few inputs and many outputs, but does not pass through `jax.custom_vjp`,
    as in `robgrad.layers`. The derivative of u -> J^T u, which is linear in u, is J all the same, so each
    column is a vector-Jacobian product of a vector-Jacobian product, at about twice forward mode's cost.
    """
    image, pull_back = jax.vjp(decode, code)
    _, push_forward = jax.vjp(lambda cotangent: pull_back(cotangent)[0], jnp.zeros_like(image))
    columns = jax.vmap(lambda direction: push_forward(direction)[0])(jnp.eye(code.size, dtype=code.dtype))
    return columns.reshape(code.size, -1).T


def tangent_space(manifold: Manifold, image: Array, tolerance: float = 1e-4) -> TangentSpace:
    """The manifold's tangent space at the projection of one image.

    The column space of the decoder's Jacobian at the image's code, by Gram-Schmidt with column pivoting,
    each column orthogonalised twice. What remains of a column counts as zero at `tolerance` times the
    largest column or less; the basis then has fewer columns that are not zero, so that shapes stay fixed
    where the Jacobian has no full rank.

    Plain array operations, since they batch well everywhere; LAPACK's batched decompositions share
    XLA:CPU's threads with the programs that call them, and two devices that call one at once can wait
    for each other forever.
    """
    code = manifold.encode(image)
    jacobian = decoder_jacobian(manifold.decode, code)
    least = tolerance * jnp.max(jnp.linalg.norm(jacobian, axis=0))

    def step(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, rest = carry
        pivot = jnp.argmax(jnp.sum(rest**2, axis=0))
        column = rest[:, pivot]
        column = column - basis @ (basis.T @ column)
        norm = length(column)
        direction = jnp.where(norm > least, column / jnp.where(norm > 0, norm, 1.0), 0.0)
        return basis.at[:, index].set(direction), rest - jnp.outer(direction, direction @ rest)

    basis, _ = lax.fori_loop(0, code.size, step, (jnp.zeros_like(jacobian), jacobian))
    return TangentSpace(basis, jnp.sum(jnp.any(basis != 0, axis=0), dtype=jnp.int32))
