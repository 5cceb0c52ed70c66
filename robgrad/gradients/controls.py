"""Controls: maps that look like attributions and know nothing of the network, or of the image, or too much.

A score of faithfulness means something where it lies above theirs. Each is an attribution, or makes one of another.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.data.calls import checked_example, checked_pictures
from robgrad.data.checks import checked_positive
from robgrad.data.images import DataError
from robgrad.gradients.attributions import Attribution, random
from robgrad.gradients.outputs import one_image
from robgrad.networks import LogitsFn


def blur(values: Array, deviation: float = 1.0) -> Array:
    """A map `[H, W]` blurred by a Gaussian of a standard deviation in pixels; edges are repeated.

    Raises:
      ValueError: if the deviation is not above 0.
    """
    checked_positive("a deviation in pixels", deviation)
    values = jnp.asarray(values)
    reach = max(1, math.ceil(3 * deviation))
    weights = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / deviation) ** 2)
    weights = weights / weights.sum()
    for axis in range(2):
        padded = jnp.pad(values, [(reach, reach) if axis == one else (0, 0) for one in range(2)], mode="edge")
        shifted = [jax.lax.dynamic_slice_in_dim(padded, at, values.shape[axis], axis) for at in range(2 * reach + 1)]
        values = jnp.tensordot(weights, jnp.stack(shifted), axes=1)
    return values


def blurred(attribution: Attribution, deviation: float = 1.0) -> Attribution:
    """Another attribution's map, blurred: as smooth as a robust network's, and no wiser."""
    return lambda key, logits_fn, image: blur(attribution(key, logits_fn, image), deviation)


def blurred_noise(deviation: float = 1.0) -> Attribution:
    """Blurred noise: smooth, and knowing nothing at all."""
    return blurred(random, deviation)


def edges(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
    """The length of the image's own gradient by Sobel's filter, channels averaged: it knows no network."""
    del key
    grey = jnp.pad(one_image(checked_example(logits_fn, image)).mean(-1), 1, mode="edge")

    def along(values: Array) -> Array:
        smooth = values[:, :-2] + 2 * values[:, 1:-1] + values[:, 2:]
        return smooth[2:] - smooth[:-2]

    return jnp.sqrt(along(grey) ** 2 + along(grey.T).T ** 2)


def of_network(attribution: Attribution, other: LogitsFn) -> Attribution:
    """An attribution of another network than the one asked about, for instance an untrained one."""
    return lambda key, logits_fn, image: attribution(key, other, image)


def of_another_image(attribution: Attribution, images: Array) -> Attribution:
    """An attribution at another image, drawn from a set `[N, H, W, C]`: it knows the network and not the image.

    Args:
      attribution: of the other image.
      images: bytes, or floating point in the network's range.

    Raises:
      DataError: if the images are not of that form, or, when called, of another shape than the image.
    """
    images = checked_pictures(images)

    def elsewhere(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        pick, rest = jax.random.split(key)
        other = images[jax.random.randint(pick, (), 0, len(images))]
        if other.shape != image.shape:
            raise DataError(f"expected images of shape {list(image.shape)} to draw from, got {list(other.shape)}")
        return attribution(rest, logits_fn, other)

    return elsewhere


def known_maps(images: Array, maps: Array) -> Attribution:
    """Maps `[N, H, W]` that are known beforehand, looked up by their images `[N, H, W, C]`: for instance true masks.

    An image that is none of them gets the map of the nearest. Images are bytes, or in the range of those asked about.

    Raises:
      DataError: if the images are of another form, or there is not a map for each.
    """
    images, maps = checked_pictures(images), jnp.asarray(maps, jnp.float32)
    if maps.shape != images.shape[:3]:
        raise DataError(f"expected a map for each image, {list(images.shape[:3])}, got shape {list(maps.shape)}")
    flat = images.reshape(len(images), -1)
    squares = jnp.sum(flat**2, axis=1)

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image = checked_example(logits_fn, image)
        if image.shape != images.shape[1:]:
            raise DataError(f"expected an image of shape {list(images.shape[1:])}, got {list(image.shape)}")
        return maps[jnp.argmax(2 * flat @ jnp.ravel(image) - squares)]

    return attribution


def smoothness(values: Array) -> Array:
    """Moran's I of a map `[H, W]` with neighbours to the side, above and below: 0 for noise, 1 for the smoothest.

    The mean product of neighbours' deviations from the map's mean, over its variance (Moran, 1950). NaN where the map
    is constant.
    """
    values = jnp.asarray(values)
    away = values - values.mean()
    # Of any scale; and the mean of a constant map may be off by rounding.
    largest = jnp.max(jnp.abs(away))
    away = jnp.where(jnp.max(values) > jnp.min(values), away, 0.0) / jnp.where(largest > 0, largest, 1.0)
    pairs = [away[1:] * away[:-1], away[:, 1:] * away[:, :-1]]
    products = sum(one.sum() for one in pairs) / sum(one.size for one in pairs)
    variance = jnp.mean(away**2)
    return jnp.where(variance > 0, products / jnp.where(variance > 0, variance, 1.0), jnp.nan)
