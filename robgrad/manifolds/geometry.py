"""The image manifold's geometry at one image: projection, distance, tangent space."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.attacks import length


class TangentSpace(NamedTuple):
    """Orthonormal `basis` `[pixels, z]`, whose columns from `rank` on are zero, and `rank` (int32)."""

    basis: Array
    rank: Array


class Manifold(NamedTuple):
    """An estimate of the image manifold, by two functions of one image `[...]`; any two will do.

    An encoder and a decoder are one way to make it (`autoencoder`), a plane through the data another (`pca`).

    Attributes:
      project: image to its projection on the manifold, of the same shape.
      tangent_space: image to the tangent space at its projection.
    """

    project: Callable[[Array], Array]
    tangent_space: Callable[[Array], TangentSpace]


def autoencoder(encode: Callable[[Array], Array], decode: Callable[[Array], Array]) -> Manifold:
    """The manifold that a decoder spans: images are projected by decode(encode(x)).

    Args:
      encode: image `[...]` to a code `[z]`.
      decode: code to an image; differentiable twice by reverse mode.

    Raises:
      ValueError: when first used, if what the decoder makes is not of the image's shape.
    """

    def project(image: Array) -> Array:
        decoded = decode(encode(image))
        if decoded.shape != image.shape:
            raise ValueError(
                f"expected a decoder to images of shape {list(image.shape)}, got {list(decoded.shape)}; reshape there"
            )
        return decoded

    def tangent(image: Array) -> TangentSpace:
        return column_space(decoder_jacobian(decode, encode(image)))

    return Manifold(project, tangent)


def distance(manifold: Manifold, image: Array) -> Array:
    """The l2 distance ||x - project(x)|| of one image to its projection, in pixel units.

    Raises:
      ValueError: if the image is not floating point, or the projection of another shape.
    """
    image = jnp.asarray(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"expected a floating-point image, got {image.dtype}; map bytes by data.scale")
    projected = manifold.project(image)
    if projected.shape != image.shape:
        raise ValueError(
            f"expected a projection of the image's shape {list(image.shape)}, got {list(projected.shape)}; one image "
            "is meant: map a batch by jax.vmap"
        )
    return length(image - projected)


def decoder_jacobian(decode: Callable[[Array], Array], code: Array) -> Array:
    """Jacobian `[pixels, z]` of a decoder at a code `[z]`.

    By forward mode, which is right for few inputs and many outputs, but does not pass through `jax.custom_vjp`,
    as in `networks.layers`. There the derivative of u -> J^T u, which is linear in u, is J all the same, so each
    column is a vector-Jacobian product of a vector-Jacobian product, at about twice forward mode's cost.
    """
    try:
        return jax.jacfwd(lambda z: jnp.ravel(decode(z)))(code)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
    image, pull_back = jax.vjp(decode, code)
    _, push_forward = jax.vjp(lambda cotangent: pull_back(cotangent)[0], jnp.zeros_like(image))
    columns = jax.vmap(lambda direction: push_forward(direction)[0])(jnp.eye(code.size, dtype=code.dtype))
    return columns.reshape(code.size, -1).T


def column_space(jacobian: Array, tolerance: float = 1e-4) -> TangentSpace:
    """The space that the columns of a Jacobian `[pixels, z]` span, as an orthonormal basis.

    Gram-Schmidt with column pivoting, each column orthogonalised twice. What remains of a column counts as zero
    at `tolerance` times the largest column or less; the basis then has fewer columns that are not zero, so that
    shapes stay fixed where the Jacobian has no full rank.

    Plain array operations, since they batch well everywhere; LAPACK's batched decompositions share
    XLA:CPU's threads with the programs that call them, and two devices that call one at once can wait
    for each other forever.

    A Jacobian that is not finite has no column space: the basis is NaN.
    """
    if not jacobian.shape[1]:
        return TangentSpace(jacobian, jnp.int32(0))
    largest = jnp.max(jnp.abs(jacobian))
    # Of any scale: squares would underflow or overflow.
    finite, jacobian = jnp.isfinite(largest), jacobian / jnp.where(largest > 0, largest, 1.0)
    least = tolerance * jnp.max(jnp.linalg.norm(jacobian, axis=0))

    def step(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, rest = carry
        pivot = jnp.argmax(jnp.sum(rest**2, axis=0))
        column = rest[:, pivot]
        column = column - basis @ (basis.T @ column)
        norm = length(column)
        direction = jnp.where(norm > least, column / jnp.where(norm > 0, norm, 1.0), 0.0)
        return basis.at[:, index].set(direction), rest - jnp.outer(direction, direction @ rest)

    basis, _ = lax.fori_loop(0, jacobian.shape[1], step, (jnp.zeros_like(jacobian), jacobian))
    basis = jnp.where(finite, basis, jnp.nan)
    return TangentSpace(basis, jnp.sum(jnp.any(basis != 0, axis=0), dtype=jnp.int32))
