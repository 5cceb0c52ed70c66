"""Norms of perturbations: what an attack needs to know of one, each for one image of any shape.

To add a norm is to write one `Norm` and name it in `NORMS`: attacks, configurations and flags read that.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.data.checks import Range, clipped


class Norm(NamedTuple):
    """What projected gradient ascent needs to know of a norm, each for one image of any shape.

    Attributes:
      length: the norm of a perturbation.
      random_start: `(key, image, epsilon)` to a perturbation uniform in the ball.
      ascent: gradient to the direction of steepest ascent, of norm 1 (0 where the gradient is 0).
      project: `(perturbation, epsilon)` to the nearest perturbation in the ball, rounded inwards.
      pace: sizes of a hyperplane's normal to how fast each pixel of the nearest point moves as the plane does; pixels
        stop at the end of their range.
    """

    length: Callable[[Array], Array]
    random_start: Callable[[Array, Array, Array], Array]
    ascent: Callable[[Array], Array]
    project: Callable[[Array, Array], Array]
    pace: Callable[[Array], Array]


def length(vector: Array) -> Array:
    """Euclidean norm over all axes. Scales first: the squares of a certain network's gradient underflow."""
    largest = jnp.max(jnp.abs(vector))
    return largest * jnp.linalg.norm(jnp.ravel(vector / _nonzero(largest)))


def _nonzero(number: Array) -> Array:
    return jnp.where(number > 0, number, 1.0)


def _l2_random_start(key: Array, image: Array, epsilon: Array) -> Array:
    direction_key, radius_key = jax.random.split(key)
    direction = _l2_ascent(jax.random.normal(direction_key, image.shape, image.dtype))
    return epsilon * jax.random.uniform(radius_key, dtype=image.dtype) ** (1 / image.size) * direction


def _l2_ascent(gradient: Array) -> Array:
    return gradient / _nonzero(length(gradient))


def _l2_project(perturbation: Array, epsilon: Array) -> Array:
    # Inwards by what the length may have been rounded by.
    least = 1 - jnp.finfo(perturbation.dtype).eps / 2 * perturbation.size**0.5
    return perturbation * jnp.minimum(1.0, epsilon * least / _nonzero(length(perturbation)))


def _linf_random_start(key: Array, image: Array, epsilon: Array) -> Array:
    return jax.random.uniform(key, image.shape, image.dtype, -epsilon, epsilon)


def _linf_project(perturbation: Array, epsilon: Array) -> Array:
    return jnp.clip(perturbation, -epsilon, epsilon)


def _linf_length(perturbation: Array) -> Array:
    return jnp.max(jnp.abs(perturbation))


def _linf_pace(sizes: Array) -> Array:
    return (sizes > 0).astype(sizes.dtype)


L2 = Norm(length, _l2_random_start, _l2_ascent, _l2_project, lambda sizes: sizes)
LINF = Norm(_linf_length, _linf_random_start, jnp.sign, _linf_project, _linf_pace)
NORMS: dict[str, Norm] = {"l2": L2, "linf": LINF}


def ascent(norm: Norm, gradient: Array) -> Array:
    """The norm's direction of steepest ascent; none, 0, where any part of the gradient is not finite."""
    return jnp.where(jnp.all(jnp.isfinite(gradient)), norm.ascent(gradient), 0.0)


def ended(norm: Norm, image: Array, point: Array, epsilon: Array, pixel_range: Range) -> Array:
    """Where an attack ends: the point, brought into ball and pixel range, rounded towards the image.

    A pixel whose sum with the image was rounded outwards goes back by one unit in the last place, so that also in
    double precision none has moved by more than the projected perturbation.
    """
    moved = norm.project(clipped(point, pixel_range) - image, epsilon)
    end = image + moved
    # What the sum has lost, exactly (Knuth's TwoSum).
    seen = end - image
    lost = (image - (end - seen)) + (moved - seen)
    end = jnp.where(lost * jnp.sign(moved) < 0, jnp.nextafter(end, image), end)
    return clipped(end, pixel_range)


def norm_named(norm: Norm | str) -> Norm:
    """A norm, given itself or its name.

    Raises:
      ValueError: if it is the name of none.
    """
    if isinstance(norm, Norm):
        return norm
    if not isinstance(norm, str) or norm not in NORMS:
        raise ValueError(f"expected a norm of {', '.join(NORMS)} or an attacks.Norm, got {norm!r}")
    return NORMS[norm]
