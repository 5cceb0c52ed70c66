"""Projected gradient attacks on one example; `jax.vmap` makes batches.

A norm is a family of three functions of one image, so the loop below is the same for all, and to add
a norm is to add one `Norm`. Structure (norm, loss, steps) is chosen when an attack is built, numbers
(epsilon, step size) when it is called, so that no change of numbers compiles anything anew.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.datasets import PIXEL_RANGE
from robgrad.losses import Loss
from robgrad.models import LogitsFn

Attack = Callable[[Array, LogitsFn, Array, Array, Array, Array], Array]


class Norm(NamedTuple):
    """What projected gradient ascent needs to know of a norm, each for one image of any shape.

    Attributes:
      random_start: `(key, image, epsilon)` to a perturbation uniform in the ball.
      ascent: gradient to the direction of steepest ascent, of norm 1 (0 where the gradient is 0).
      project: `(perturbation, epsilon)` to the nearest perturbation in the ball.
    """

    random_start: Callable[[Array, Array, Array], Array]
    ascent: Callable[[Array], Array]
    project: Callable[[Array, Array], Array]


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


L2 = Norm(_l2_random_start, _l2_ascent, _l2_project)
LINF = Norm(_linf_random_start, jnp.sign, _linf_project)
NORMS = {"l2": L2, "linf": LINF}


def pgd(
    norm: Norm,
    loss: Loss,
    steps: int,
    *,
    random_start: bool = False,
    pixel_range: tuple[float, float] = PIXEL_RANGE,
) -> Attack:
    """Builds projected gradient ascent of a loss in a ball around the image (Madry et al., 2018).

    Each step moves by `step_size` along the norm's direction of steepest ascent, projects the
    perturbation onto the ball of radius `epsilon`, and clips the pixels to their range. A step may be
    longer than the ball is wide.

    Args:
      norm: `L2`, `LINF` or another `Norm`.
      loss: `(logits, label) -> scalar` to ascend.
      steps: number of steps, at least 1.
      random_start: start at a uniform point of the ball instead of at the image.
      pixel_range: smallest and largest value of a pixel.

    Returns:
      `attack(key, logits_fn, image, label, epsilon, step_size)` to the attacked image, for one image of
      any shape; `epsilon` and `step_size` are scalars in pixel units. Where the gradient is zero, or
      `epsilon` is, the image comes back unchanged.

    Raises:
      ValueError: if `steps` is below 1 or the pixel range is empty.
    """
    if steps < 1:
        raise ValueError(f"expected at least 1 attack step, got {steps}")
    if not pixel_range[0] < pixel_range[1]:
        raise ValueError(f"expected a pixel range (low, high) with low < high, got {pixel_range}")

    def attack(key, logits_fn, image, label, epsilon, step_size):
        gradient = jax.grad(lambda x: loss(logits_fn(x), label))

        def within(perturbation):
            return jnp.clip(image + norm.project(perturbation, epsilon), *pixel_range)

        def step(_, attacked):
            moved = attacked + step_size * norm.ascent(gradient(attacked))
            return within(moved - image)

        start = within(norm.random_start(key, image, epsilon)) if random_start else image
        return lax.fori_loop(0, steps, step, start)

    return attack


def no_attack(key, logits_fn, image, label, epsilon, step_size):
    """The attack that leaves the image as it is: what standard training trains against."""
    del key, logits_fn, label, epsilon, step_size
    return image
