"""Measures of one image: gradients against tangent spaces, their baselines, sensitivity on and off the manifold."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.attacks import length
from robgrad.data import DataError
from robgrad.data.calls import checked_example, checked_numbers
from robgrad.data.checks import checked_count
from robgrad.gradients.outputs import kept_nan, logit_of_prediction
from robgrad.manifolds import TangentSpace
from robgrad.networks import LogitsFn


def tangent_fraction(direction: Array, basis: Array) -> Array:
    """||B^T g||^2 / ||g||^2, the share of a direction g `[...]` along orthonormal columns B `[pixels, z]`.

    NaN for a direction of length zero or not finite, 0 along an empty tangent space. Its root is the cosine of the
    angle between g and its part along B, the measure of Bordt et al. (2022). With the tangent space of another image,
    or of another of the same class, it is the baseline for what is local.

    Raises:
      ValueError: if the basis is not one of the direction's pixels.
    """
    _check_basis(basis, jnp.size(direction))
    flat = jnp.ravel(direction)
    norm = length(flat)
    # Normalised first, since the squares of a certain network's gradient underflow.
    coordinates = basis.T @ (flat / jnp.where(norm > 0, norm, 1.0))
    return jnp.where(norm > 0, jnp.sum(coordinates**2), jnp.nan)


def covariance_chance(basis: Array, spread: Array) -> Array:
    """tr(B^T S B) / tr(S): how much of a direction with the data's covariance S lies along B, in the mean square.

    The fair baseline for `tangent_fraction`, since directions in which images vary have more in common with any tangent
    space than a random one, whose share is rank / pixels.

    Args:
      basis: `[pixels, z]`, orthonormal columns or zeros.
      spread: `[N, pixels]`, images less their mean: S is their mean product. NaN where they are all alike.

    Raises:
      ValueError: if the basis is not one of those pixels.
    """
    _check_basis(basis, jnp.shape(spread)[-1])
    spread = jnp.asarray(spread)
    if not jnp.issubdtype(spread.dtype, jnp.floating):
        raise DataError(f"expected floating-point images less their mean, got {spread.dtype}")
    # Of any scale: squares underflow and overflow.
    largest = jnp.max(jnp.abs(spread))
    spread = spread / jnp.where(largest > 0, largest, 1.0)
    return jnp.sum((spread @ basis) ** 2) / jnp.sum(spread**2)


def _check_basis(basis: Array, pixels: int) -> None:
    if jnp.ndim(basis) != 2 or jnp.shape(basis)[0] != pixels:
        raise ValueError(f"expected a basis [{pixels}, dimensions], got shape {list(jnp.shape(basis))}")


def image_alignment(logits_fn: LogitsFn, image: Array) -> Array:
    """|<x, g>| / ||g||, g the gradient of the predicted class's logit (Etmann et al., 2019); NaN where g is zero.

    Raises:
      DataError: if the image is not one of floating-point pixels.
    """
    image = checked_example(logits_fn, image)
    gradient = jax.grad(logit_of_prediction(logits_fn, image))(image)
    norm = length(gradient)
    unit = gradient / jnp.where(norm > 0, norm, 1.0)
    return jnp.where(norm > 0, jnp.abs(jnp.vdot(image, unit)), jnp.nan)


class Sensitivity(NamedTuple):
    """Mean squared change of a network's output under noise along the manifold (`on`) and across it (`off`)."""

    on: Array
    off: Array


def sensitivity(
    key: Array,
    logits_fn: LogitsFn,
    image: Array,
    tangent: TangentSpace,
    radius: Array | float,
    *,
    samples: int = 50,
    output: Callable[[Array], Array] = jax.nn.softmax,
) -> Sensitivity:
    """How much a network's output changes on and off the manifold (Srinivas, Bordt and Lakkaraju, 2023).

    E ||o(f(x + u)) - o(f(x))||^2 for u of length `radius`, uniform in the tangent space, or in its complement. For a
    linear network of one output, off / on = ((1 - t) / (d - k)) / (t / k), t its gradient's tangent fraction, k of d
    dimensions. What is empty, the tangent space or its complement, moves nothing: 0.

    Args:
      key: random key.
      logits_fn: the network.
      image: `[...]`.
      tangent: the tangent space at it.
      radius: length of the noise, in pixel units.
      samples: draws of each.
      output: of the logits, what is compared.

    Raises:
      DataError: if the image is not one of floating-point pixels.
      ValueError: if there are no samples, the radius is negative, or the tangent space is of other pixels.
    """
    image = checked_example(logits_fn, image, least=1)
    checked_count("sample", samples)
    _check_basis(tangent.basis, image.size)
    (radius,) = checked_numbers(image.dtype, radius=radius)
    shown = lambda x: kept_nan(output, logits_fn(x))  # noqa: E731
    clean = shown(image)

    def change(direction: Array, there: Array) -> Array:
        size = length(direction)
        moved = jnp.where(there, radius * direction / jnp.where(size > 0, size, 1.0), 0.0)
        return jnp.where(there, jnp.sum((shown(image + moved.reshape(image.shape)) - clean) ** 2), 0.0)

    def both(key: Array) -> tuple[Array, Array]:
        noise = jax.random.normal(key, (image.size,), image.dtype)
        along = tangent.basis @ (tangent.basis.T @ noise)
        return change(along, tangent.rank > 0), change(noise - along, tangent.rank < image.size)

    on, off = jax.lax.map(both, jax.random.split(key, samples), batch_size=samples)
    return Sensitivity(on.mean(), off.mean())
