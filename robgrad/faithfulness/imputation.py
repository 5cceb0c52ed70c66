"""Noisy linear imputation of ROAD (Rong et al., 2022): removed pixels become what their neighbours suggest.

A colour in their place, as in ROAR, shows the shape of what was removed; a weighted mean of the neighbours hides it.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.data.calls import mask_of
from robgrad.data.images import DataError

# Weights of a pixel's eight neighbours.
_SIDE, _CORNER = 1 / 6, 1 / 12
WEIGHTS = ((_CORNER, _SIDE, _CORNER), (_SIDE, 0.0, _SIDE), (_CORNER, _SIDE, _CORNER))


def _neighbours(values: Array) -> Array:
    """The weighted sum of each pixel's neighbours within the image, `[H, W, C]`."""
    height, width = values.shape[:2]
    padded = jnp.pad(values, ((1, 1), (1, 1), (0, 0)))
    return sum(
        (
            weight * padded[down : down + height, right : right + width]
            for down, row in enumerate(WEIGHTS)
            for right, weight in enumerate(row)
            if weight
        ),
        jnp.zeros_like(values),
    )


def _total(values: Array) -> Array:
    """The sum over an image, rows first and by themselves: XLA adds those side by side, all at once one by one."""
    return lax.optimization_barrier(values.sum(0)).sum()


def impute(
    image: Array,
    removed: Array,
    key: Array | None = None,
    noise: float = 0.01,
    tolerance: float = 1e-6,
    most: int = 500,
) -> Array:
    """An image whose removed pixels are each the weighted mean of their neighbours, all at once.

    Sides weigh 1/6, corners 1/12, those outside of the image nothing. It is a symmetric, positive linear system,
    solved by conjugate gradients with the diagonal for preconditioner: products with neighbours alone, which batch.

    Args:
      image: `[H, W, C]`.
      removed: `[H, W]` bool. Where all are, they become the image's mean.
      key: of the noise; none is added where None.
      noise: standard deviation of what is added to removed pixels, in pixel units; the paper has 0.01.
      tolerance: of the residual's length over the right-hand side's, both in the norm of the preconditioner.
      most: steps at most.

    Raises:
      DataError: if the image is not floating point `[H, W, C]`, or what is removed not of its `[H, W]`.
    """
    image = jnp.asarray(image)
    if image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
        raise DataError(f"expected a floating-point image [H, W, C], got {image.dtype} of shape {list(image.shape)}")
    removed = mask_of(removed, image.shape[:2])
    missing = removed[..., None]
    weight = _neighbours(jnp.ones_like(image))
    everything = removed.all()

    def system(values: Array) -> Array:
        return jnp.where(missing, weight * values - _neighbours(jnp.where(missing, values, 0.0)), 0.0)

    wanted = jnp.where(missing, _neighbours(jnp.where(missing, 0.0, image)), 0.0)
    start = jnp.where(missing, image.mean((0, 1)), 0.0)
    residual = wanted - system(start)
    scaled = residual / weight
    least = (tolerance**2) * jnp.maximum(_total(wanted**2 / weight), 1e-12)

    def unfinished(carry) -> Array:
        _, _, _, product, step = carry
        return (step < most) & (product > least) & ~everything

    def turn(carry):
        values, residual, direction, product, step = carry
        mapped = system(direction)
        length = product / jnp.maximum(_total(direction * mapped), 1e-30)
        values, residual = values + length * direction, residual - length * mapped
        new = _total(residual**2 / weight)
        direction = residual / weight + new / jnp.maximum(product, 1e-30) * direction
        return values, residual, direction, new, step + 1

    carry = (start, residual, scaled, _total(residual * scaled), jnp.int32(0))
    values = lax.while_loop(unfinished, turn, carry)[0]
    if key is not None:
        values = values + noise * jax.random.normal(key, image.shape, image.dtype)
    return jnp.where(missing, values, image)
