"""Corruptions of known severity: what images look like off their distribution, without an adversary.

After Hendrycks and Dietterich (2019), for images of any size: each maps `(key, image, severity)` to an image, `[H, W,
C]` in [-1, 1], of a severity from 1 to 5, and raises `DataError` or `ValueError` for others; `jax.vmap` makes batches.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.data.calls import within_range
from robgrad.data.images import PIXEL_RANGE, DataError

Corruption = Callable[[Array, Array, int], Array]


def _checked(image: Array, severity: int) -> Array:
    """The image `[H, W, C]`, if it is one, floating point and in [-1, 1]; and the severity is one of 1 to 5."""
    if jnp.ndim(image) != 3:
        raise DataError(f"expected one image [H, W, C], got shape {list(jnp.shape(image))}; map a batch by jax.vmap")
    if not jnp.issubdtype(jnp.result_type(image), jnp.floating):
        raise DataError(f"expected a floating-point image, got {jnp.result_type(image)}; map bytes by data.scale")
    if severity not in range(1, 6):
        raise ValueError(f"expected a severity of 1 to 5, got {severity!r}")
    return within_range(jnp.asarray(image), PIXEL_RANGE)


def gaussian_noise(key: Array, image: Array, severity: int) -> Array:
    """Adds noise of standard deviation 0.12 a step of severity."""
    image = _checked(image, severity)
    return _within(image + 0.12 * severity * jax.random.normal(key, image.shape))


def impulse_noise(key: Array, image: Array, severity: int) -> Array:
    """Sets pixels to black or white, 3% of them a step of severity."""
    image = _checked(image, severity)
    hit, kind = jax.random.split(key)
    chosen = jax.random.bernoulli(hit, 0.03 * severity, image.shape[:2])[..., None]
    extreme = jnp.where(jax.random.bernoulli(kind, shape=image.shape[:2]), *PIXEL_RANGE[::-1])[..., None]
    return jnp.where(chosen, extreme, image)


def contrast(key: Array, image: Array, severity: int) -> Array:
    """Takes the image towards its mean, by 15% a step of severity."""
    del key
    mean = _checked(image, severity).mean()
    return mean + (1 - 0.15 * severity) * (image - mean)


def brightness(key: Array, image: Array, severity: int) -> Array:
    """Adds 0.15 a step of severity."""
    del key
    return _within(_checked(image, severity) + 0.15 * severity)


def box_blur(key: Array, image: Array, severity: int) -> Array:
    """Averages each pixel with its neighbours, once a step of severity; edges are repeated."""
    del key
    image = _checked(image, severity)
    for _ in range(severity):
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        rows = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
        image = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 3
    return image


def _within(image: Array) -> Array:
    return jnp.clip(image, *PIXEL_RANGE)


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": gaussian_noise,
    "impulse noise": impulse_noise,
    "contrast": contrast,
    "brightness": brightness,
    "blur": box_blur,
}
