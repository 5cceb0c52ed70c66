"""Images with pixels replaced, by the ranks that an attribution gives them."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from robgrad import stacking
from robgrad.data import scale
from robgrad.data.calls import checked_map, known
from robgrad.data.images import DataError
from robgrad.gradients import Attribution, coin_map, key_named, rank_map
from robgrad.networks import LogitsFn


class Occlusion(NamedTuple):
    """Which pixels a replica loses; scalars, or `[S]` for a stack.

    Attributes:
      method: index of the rank map it goes by.
      threshold: pixels ranked below it are the chosen ones.
      keep: whether the chosen pixels are kept (KAR) or removed (ROAR).
    """

    method: Array
    threshold: Array
    keep: Array


def occlude(image: Array, ranks: Array, occlusion: Occlusion, fill: Array | None = None) -> Array:
    """Replaces pixels of one image `[H, W, C]` by a colour.

    Args:
      image: in [-1, 1].
      ranks: `[methods, H, W]`, 0 for the pixel of highest attribution.
      occlusion: of one replica.
      fill: colour `[C]` in [-1, 1]; the image's own mean colour where None.

    Raises:
      ValueError: if the fill is no colour of the image, or there is no such rank map; where that is traced the image
        is NaN.
    """
    colour = image.mean((0, 1)) if fill is None else jnp.asarray(fill)
    if jnp.shape(colour) not in ((), image.shape[-1:]):
        raise ValueError(f"expected a fill of {image.shape[-1]} numbers, got shape {list(jnp.shape(colour))}")
    there = occlusion.method < len(ranks)
    if known(there) is not None and not np.all(known(there)):
        raise ValueError(f"expected one of {len(ranks)} rank maps, got that at place {np.max(known(occlusion.method))}")
    chosen = ranks[occlusion.method] < occlusion.threshold
    removed = jnp.where(occlusion.keep, ~chosen, chosen)
    return jnp.where(there, jnp.where(removed[..., None], colour, image), jnp.nan)


def mean_colour(images: np.ndarray) -> Array:
    """The data set's mean colour `[C]` in [-1, 1], the paper's fill.

    Raises:
      DataError: if the images are neither bytes nor floating point.
    """
    if not np.issubdtype(images.dtype, np.floating) and images.dtype != np.uint8:
        raise DataError(f"expected uint8 or floating-point images, got {images.dtype}; convert them")
    mean = jnp.asarray(np.mean(images, axis=(0, 1, 2), dtype=np.float64), jnp.float32)
    if np.issubdtype(images.dtype, np.floating):
        return mean
    low, high = scale(jnp.array([0, 255], jnp.uint8))
    return low + (high - low) * mean / 255


def fill_of(fill: Array | str | None, images: np.ndarray) -> Array | None:
    """The colour of removed pixels: given `[C]` in [-1, 1], `"mean"` for the data set's, None for each image's own.

    Raises:
      ValueError: if it is neither.
    """
    if fill is None:
        return None
    if isinstance(fill, str):
        if fill != "mean":
            raise ValueError(f"expected a fill of 'mean', None or a colour [C], got '{fill}'")
        return mean_colour(images)
    colour, channels = jnp.asarray(fill, jnp.float32), images.shape[-1]
    if colour.shape != (channels,) or not bool(jnp.all(jnp.abs(colour) <= 1)):
        raise ValueError(f"expected a fill of {channels} numbers in [-1, 1], got {fill}")
    return colour


def rank_maps(
    network: Callable[[Any], LogitsFn],
    methods: Mapping[str, Attribution],
    mesh: Mesh,
    *,
    randoms: int = 1,
    coin: bool = True,
    chunk: int = 100,
) -> Callable[[Any, Any, Array], Array]:
    """Compiles rank maps of a set of images, by each method and by as many draws of Random.

    Each method's randomness depends on the key and its name alone, not on what other methods there are.

    Args:
      network: variables to the network as a function of one image.
      methods: attributions by name.
      mesh: from `stacking.device_mesh(1, chunk)`.
      randoms: draws of Random, one for each seed of the retrainings, so that seeds average its mask too.
      coin: Random tosses a coin for each pixel, as the paper; else it ranks at random.
      chunk: images at a time.

    Returns:
      `run(variables, images, key)` to `[N, methods + randoms, H, W]`, Random's last. It raises
      `DataError` if an attribution is NaN at an image, in a single process.
    """

    def random(key: Array, image: Array) -> Array:
        return coin_map(key, image) if coin else rank_map(key, jnp.zeros(image.shape[:2]))

    def of_image(_, variables, example):
        key, pixels = example
        image, maps = scale(pixels), []
        for name, attribution in methods.items():
            ties, own = jax.random.split(key_named(key, name))
            values = checked_map(attribution(own, network(variables), image), image.shape[:2])
            # NaN gives no order: all pixels are ranked 0 then, which no order has, and `run` refuses it.
            ranks = rank_map(ties, values)
            maps.append(jnp.where(jnp.isnan(values).any(), 0, ranks).astype(ranks.dtype))
        draws = [random(key_named(key, f"random {seed}"), image) for seed in range(randoms)]
        return jnp.stack([*maps, *draws])

    spread = stacking.per_example(of_image, mesh, chunk)

    def run(variables, images, key):
        one = stacking.stack([variables])
        ranks = stacking.replica(spread((), one, (jax.random.split(key, len(images)), images)), 0)
        if jax.process_count() == 1 and math.prod(ranks.shape[2:]) > 1:
            undefined = np.asarray(jnp.all(ranks[:, : len(methods)] == 0, axis=(2, 3)))
            for name, count in zip(methods, undefined.sum(0), strict=True):
                if count:
                    raise DataError(f"{name}: expected a map with an order of pixels, got NaN at {count} images")
        return ranks

    return run
