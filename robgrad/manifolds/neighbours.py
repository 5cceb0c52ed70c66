"""Local principal component analysis: at each image the plane through its nearest neighbours in the data."""

import jax.numpy as jnp
from jax import Array, lax

from robgrad.data import scale
from robgrad.manifolds.eigen import leading_directions
from robgrad.manifolds.geometry import Manifold, TangentSpace


def nearest(images: Array, image: Array, count: int) -> Array:
    """Indices of the images `[N, ...]` nearest to an image in l2, nearest first."""
    flat = images.reshape(len(images), -1)
    # Without the image's own square, which is the same for all.
    return lax.top_k(2 * flat @ jnp.ravel(image) - jnp.sum(flat**2, axis=1), count)[1]


def local_pca(images: Array, neighbours: int = 50, dimensions: int = 10) -> Manifold:
    """The manifold as planes through neighbours: tangent spaces follow the data's curvature, as a plane's do not.

    An image is projected on the plane through the mean of its nearest neighbours along the directions in which they
    vary most (Kambhatla and Leen, 1997).

    Args:
      images: `[N, H, W, C]`, bytes or in [-1, 1]; all are compared with each image.
      neighbours: how many make a plane.
      dimensions: of the plane, fewer than neighbours.

    Raises:
      ValueError: if there are fewer images than neighbours, or no more neighbours than dimensions.
    """
    if not 1 <= dimensions < neighbours <= len(images):
        raise ValueError(
            f"expected 1 <= dimensions < neighbours <= {len(images)} images, got {dimensions} and {neighbours}"
        )
    pixels = scale(jnp.asarray(images))

    def plane(image: Array) -> tuple[Array, Array]:
        near = pixels[nearest(pixels, image, neighbours)].reshape(neighbours, -1)
        mean = near.mean(0)
        spread = near - mean
        directions, _ = leading_directions(lambda block: spread.T @ (spread @ block), mean.size, dimensions)
        return mean, directions

    def project(image: Array) -> Array:
        mean, directions = plane(image)
        return (mean + directions @ (directions.T @ (jnp.ravel(image) - mean))).reshape(image.shape)

    def tangent(image: Array) -> TangentSpace:
        _, directions = plane(image)
        return TangentSpace(directions, jnp.sum(jnp.any(directions != 0, axis=0), dtype=jnp.int32))

    return Manifold(project, tangent)
