"""Local principal component analysis: at each image the plane through its nearest neighbours in the data."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad.data import Split, scale
from robgrad.data.calls import checked_like, known
from robgrad.data.checks import checked_split
from robgrad.manifolds.eigen import symmetric_eigen
from robgrad.manifolds.geometry import Manifold, TangentSpace


def nearest(images: Array, image: Array, count: int, squares: Array | None = None) -> Array:
    """Indices of the images `[N, ...]` nearest to an image in l2, nearest first; `squares` `[N]` of their lengths."""
    flat = images.reshape(len(images), -1)
    # Without the image's own square, which is the same for all.
    return lax.top_k(2 * flat @ jnp.ravel(image) - (squares_of(images) if squares is None else squares), count)[1]


def squares_of(images: Array) -> Array:
    """Squared lengths `[N]` of images `[N, ...]`."""
    return jnp.sum(images.reshape(len(images), -1) ** 2, axis=1)


def principal_directions(spread: Array, count: int) -> Array:
    """The directions of largest variance of points less their mean, `[N, pixels]` to orthonormal `[pixels, count]`.

    Right singular vectors, exact to rounding, from the eigenvectors of the smaller of both products of the matrix with
    itself; a column is zero where the points do not vary so widely, to 1e-3 of their largest deviation, or no more than
    rounding moves pixels of up to 1.
    """
    if spread.shape[1] <= len(spread):
        squares, vectors = symmetric_eigen(spread.T @ spread)
    else:
        squares, combinations = symmetric_eigen(spread @ spread.T)
        vectors = spread.T @ combinations
        vectors = vectors / jnp.sqrt(jnp.maximum(jnp.sum(vectors**2, axis=0), 1e-30))
    rounding = spread.size * jnp.finfo(spread.dtype).eps ** 2
    kept = squares[:count] > jnp.maximum(1e-6 * squares[0], rounding)
    return jnp.where(jnp.all(jnp.isfinite(spread)), jnp.where(kept, vectors[:, :count], 0.0), jnp.nan)


def local_pca(images: Array, neighbours: int = 50, dimensions: int = 10) -> Manifold:
    """The manifold as planes through neighbours: tangent spaces follow the data's curvature, as a plane's do not.

    An image is projected on the plane through the mean of its nearest neighbours along the directions in which they
    vary most (Kambhatla and Leen, 1997).

    Args:
      images: `[N, H, W, C]`, bytes or in [-1, 1]; all are compared with each image.
      neighbours: how many make a plane.
      dimensions: of the plane, fewer than neighbours.

    Raises:
      DataError: if the images are not of that form.
      ValueError: if there are fewer images than neighbours, or no more neighbours than dimensions.
    """
    if not 1 <= dimensions < neighbours <= len(images):
        raise ValueError(
            f"expected 1 <= dimensions < neighbours <= {len(images)} images, got {dimensions} and {neighbours}"
        )
    if known(images) is not None:  # Within a compiled program they have been checked before.
        labels = np.zeros(len(images), np.int32)
        images = jnp.asarray(checked_split(Split(np.asarray(images), labels), None, "images", as_images=False).images)
    pixels = scale(jnp.asarray(images))
    # Here, since a program that holds the images as constants would have its compiler do this, for seconds.
    squares = squares_of(pixels)

    def plane(image: Array) -> tuple[Array, Array]:
        near = pixels[nearest(pixels, image, neighbours, squares)].reshape(neighbours, -1)
        mean = near.mean(0)
        spread = near - mean
        return mean, principal_directions(spread, dimensions)

    def project(image: Array) -> Array:
        image = checked_like(image, pixels.shape[1:])
        mean, directions = plane(image)
        return (mean + directions @ (directions.T @ (jnp.ravel(image) - mean))).reshape(image.shape)

    def tangent(image: Array) -> TangentSpace:
        _, directions = plane(checked_like(image, pixels.shape[1:]))
        return TangentSpace(directions, jnp.sum(jnp.any(directions != 0, axis=0), dtype=jnp.int32))

    return Manifold(project, tangent)
