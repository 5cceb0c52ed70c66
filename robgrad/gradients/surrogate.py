"""LIME: what a linear surrogate of the network around one image says of its regions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.data.calls import checked_example, pixels_of
from robgrad.data.checks import checked_count, checked_positive
from robgrad.gradients.attributions import Attribution
from robgrad.gradients.outputs import Output, one_image, probability_of_prediction
from robgrad.networks import LogitsFn


class Regions(NamedTuple):
    """A way to cut images into regions.

    Attributes:
      count: image shape to how many regions there are at most.
      of: image `[H, W, C]` to each pixel's region, `[H, W]` of 0..count - 1.
    """

    count: Callable[[Sequence[int]], int]
    of: Callable[[Array], Array]


def grid_regions(cells: int = 4) -> Regions:
    """A grid of so many cells to a side; no more than there are pixels."""
    checked_count("cell to a side", cells)

    def places(size: int) -> Array:
        return jnp.arange(size) * min(cells, size) // size

    def of(image: Array) -> Array:
        height, width = image.shape[:2]
        return places(height)[:, None] * min(cells, width) + places(width)[None, :]

    return Regions(lambda shape: min(cells, shape[0]) * min(cells, shape[1]), of)


def superpixels(count: int = 16, compactness: float = 0.5, turns: int = 5) -> Regions:
    """SLIC (Achanta et al., 2012) in its plain form: k-means of colour and place, from a grid of centres.

    Args:
      count: regions; the grid has the nearest square number of them, at least 4.
      compactness: weight of a place, in grid steps, against a colour, in units of the pixel range 2.
      turns: of k-means.
    """
    checked_count("region", count)
    checked_positive("a weight of places", compactness)
    checked_count("turn", turns)
    across = max(2, round(count**0.5))

    def of(image: Array) -> Array:
        height, width = image.shape[:2]
        down, right = jnp.meshgrid(jnp.arange(height) / height, jnp.arange(width) / width, indexing="ij")
        place = across * compactness * jnp.stack([down, right], axis=-1)
        features = jnp.concatenate([one_image(image), place], axis=-1).reshape(height * width, -1)
        middle = lambda size: ((jnp.arange(across) + 0.5) * size / across).astype(jnp.int32)  # noqa: E731
        starts = (middle(height)[:, None] * width + middle(width)[None, :]).ravel()

        def nearest(centres: Array) -> Array:
            return jnp.argmin(jnp.sum((features[:, None] - centres) ** 2, axis=-1), axis=1)

        def turn(_, centres: Array) -> Array:
            members = jax.nn.one_hot(nearest(centres), across**2)
            sizes = members.sum(0)[:, None]
            return jnp.where(sizes > 0, members.T @ features / jnp.maximum(sizes, 1), centres)

        return nearest(jax.lax.fori_loop(0, turns, turn, features[starts])).reshape(height, width)

    return Regions(lambda shape: across**2, of)


def lime(
    regions: Regions = grid_regions(),  # noqa: B008 - a value, made of nothing
    samples: int = 200,
    *,
    fill: Array | float | None = None,
    width: float = 0.25,
    ridge: float = 1.0,
    output: Output = probability_of_prediction,
    chunk: int = 100,
) -> Attribution:
    """LIME (Ribeiro, Singh and Guestrin, 2016): the weights of a linear fit to the network with regions left out.

    Regions are kept with probability 1/2 in each sample z, all of them in the first; the fit's weights are
    exp(-d^2 / width^2) under a root, d the cosine distance of z from all ones, and its coefficients, but for the
    intercept, are shrunk by ridge regression. A pixel's value is its region's coefficient.

    Args:
      regions: of an image, a grid or superpixels.
      samples: evaluations of the network.
      fill: of what is left out, a value, a colour `[C]` or an image; the image's mean colour where None.
      width: of the kernel.
      ridge: penalty of the squared coefficients; 0 for none.
      output: what is fitted, of the network.
      chunk: evaluations at a time; memory depends on it.

    Raises:
      ValueError: if there are fewer than two samples, the width is not above 0, or the ridge negative.
    """
    checked_count("samples", samples, 2)
    checked_count("evaluation in a chunk", chunk)
    checked_positive("a kernel's width", width)
    if not 0 <= ridge < jnp.inf:
        raise ValueError(f"expected a ridge of 0 or more, got {ridge}")

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        image = one_image(checked_example(logits_fn, image))
        cells, count = regions.of(image), regions.count(image.shape)
        explained = output(logits_fn, image)
        base = pixels_of("fill", image.mean((0, 1)) if fill is None else fill, image)
        kept = jax.random.bernoulli(key, shape=(samples, count)).at[0].set(True).astype(image.dtype)
        seen = lambda z: explained(jnp.where(z[cells][..., None] > 0, image, base))  # noqa: E731
        values = jax.lax.map(seen, kept, batch_size=min(chunk, samples))
        return surrogate(kept, values, width, ridge)[cells]

    return attribution


def surrogate(kept: Array, values: Array, width: float = 0.25, ridge: float = 1.0) -> Array:
    """Coefficients `[regions]` of LIME's weighted ridge regression of values `[N]` on samples `[N, regions]`.

    Solved by conjugate gradients on the normal equations of centred columns, since the intercept is not penalised. NaN
    where a value is not finite.
    """
    # The cosine of z and all ones is the root of the share that is kept.
    away = 1 - jnp.sqrt(kept.mean(1))
    weights = jnp.sqrt(jnp.exp(-(away**2) / width**2))
    shares = weights / weights.sum()
    centred, wanted = kept - shares @ kept, values - shares @ values
    product = lambda v: centred.T @ (weights * (centred @ v)) + ridge * v  # noqa: E731
    start = jnp.zeros(kept.shape[1], (kept[0, 0] * values[0]).dtype)
    found = jax.scipy.sparse.linalg.cg(product, centred.T @ (weights * wanted), start, tol=1e-7, maxiter=500)[0]
    return jnp.where(jnp.all(jnp.isfinite(values)), found, jnp.nan)
