"""The plane through the data's mean along its directions of largest variance: the simplest manifold."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import linalg

from robgrad.data import DataError, Split, scale
from robgrad.data.calls import checked_like
from robgrad.data.checks import checked_count, checked_split
from robgrad.manifolds.geometry import Manifold, TangentSpace


class Plane(NamedTuple):
    """A plane in the space of images: a point `mean` `[H, W, C]` and orthonormal `directions` `[pixels, z]`."""

    mean: Array
    directions: Array


def fit_pca(images: np.ndarray, dimensions: int = 10, most: int = 10_000) -> Plane:
    """Principal component analysis of images `[N, H, W, C]`, bytes or in [-1, 1].

    The leading eigenvectors of the covariance of the first `most` images, in double precision on the host. Columns in
    whose direction the images do not vary, to 1e-6 of their largest deviation, are zero, and no dimension of the plane.

    Raises:
      DataError: if the images are not of that form.
      ValueError: if there are no more images, or pixels, than dimensions.
    """
    checked = checked_split(Split(images, np.zeros(len(images), np.int32)), None, "images", as_images=False).images
    if checked.ndim == 3 and checked.shape[-1] in (1, 3, 4):
        raise DataError(f"images: expected [N, H, W, C], got {list(checked.shape)}, which looks like one image")
    checked_count("image", most, 2)
    checked_count("dimension", dimensions)
    pixels = np.asarray(scale(jnp.asarray(checked[:most])), np.float64).reshape(min(most, len(checked)), -1)
    if min(pixels.shape) < 2:
        raise ValueError(f"expected two images of two pixels or more, got {len(pixels)} of {pixels.shape[1]}")
    if not 1 <= dimensions < min(pixels.shape):
        raise ValueError(
            f"expected 1 to {min(pixels.shape) - 1} dimensions for {len(pixels)} images of {pixels.shape[1]} pixels, "
            f"got {dimensions}"
        )
    mean = pixels.mean(0)
    largest = (pixels.shape[1] - dimensions, pixels.shape[1] - 1)
    variances, vectors = linalg.eigh(np.cov(pixels.T), subset_by_index=largest)
    varies = variances[::-1] > 1e-12 * max(variances[-1], 1e-12)
    directions = np.where(varies, vectors[:, ::-1], 0.0)
    return Plane(jnp.asarray(mean.reshape(checked.shape[1:]), jnp.float32), jnp.asarray(directions, jnp.float32))


def pca(plane: Plane) -> Manifold:
    """The plane as a manifold: orthogonal projection, and the same tangent space everywhere."""
    rank = jnp.sum(jnp.any(plane.directions != 0, axis=0), dtype=jnp.int32)

    def project(image: Array) -> Array:
        image = checked_like(image, plane.mean.shape)
        along = plane.directions @ (plane.directions.T @ jnp.ravel(image - plane.mean))
        return plane.mean + along.reshape(image.shape)

    return Manifold(project, lambda image: TangentSpace(plane.directions, rank))
