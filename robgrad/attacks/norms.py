"""Norms of perturbations: what an attack needs to know of one, each for one image of any shape.

To add a norm is to write one `Norm` and name it in `NORMS`: attacks, configurations and flags read that.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Norm(NamedTuple):
    """What projected gradient ascent needs to know of a norm, each for one image of any shape.

    Attributes:
      length: the norm of a perturbation.
      random_start: `(key, image, epsilon)` to a perturbation uniform in the ball.
      ascent: gradient to the direction of steepest ascent, of norm 1 (0 where the gradient is 0).
      project: `(perturbation, epsilon)` to the nearest perturbation in the ball.
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
    direction = _l2_ascent(jax.random.normal(direction_key, image.shape))
    return epsilon * jax.random.uniform(radius_key) ** (1 / image.size) * direction


def _l2_ascent(gradient: Array) -> Array:
    return gradient / _nonzero(length(gradient))


def _l2_project(perturbation: Array, epsilon: Array) -> Array:
    return perturbation * jnp.minimum(1.0, epsilon / _nonzero(length(perturbation)))


def _linf_random_start(key: Array, image: Array, epsilon: Array) -> Array:
    return jax.random.uniform(key, image.shape, minval=-epsilon, maxval=epsilon)


def _linf_project(perturbation: Array, epsilon: Array) -> Array:
    return jnp.clip(perturbation, -epsilon, epsilon)


def _linf_length(perturbation: Array) -> Array:
    return jnp.max(jnp.abs(perturbation))


def _linf_pace(sizes: Array) -> Array:
    return (sizes > 0).astype(sizes.dtype)


L2 = Norm(length, _l2_random_start, _l2_ascent, _l2_project, lambda sizes: sizes)
LINF = Norm(_linf_length, _linf_random_start, jnp.sign, _linf_project, _linf_pace)
NORMS: dict[str, Norm] = {"l2": L2, "linf": LINF}


def norm_named(norm: Norm | str) -> Norm:
    """A norm, given itself or its name.

    Raises:
      ValueError: if it is the name of none.
    """
    if isinstance(norm, Norm):
        return norm
    if norm not in NORMS:
        raise ValueError(f"expected a norm of {', '.join(NORMS)} or an attacks.Norm, got {norm!r}")
    return NORMS[norm]
