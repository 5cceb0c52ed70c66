"""FAB (Croce and Hein, 2020): the least perturbation that changes the class, by steps to linearised boundaries."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.attacks.losses import cw_margin
from robgrad.attacks.norms import Norm, norm_named
from robgrad.attacks.search import Goal, Search
from robgrad.data import PIXEL_RANGE
from robgrad.data.checks import Range, checked_count, checked_range, clipped

# The paper's constants: largest pull back to the image, overshoot, step back once across.
PULL, OVERSHOOT, BACK = 0.1, 1.05, 0.9


class Boundary(NamedTuple):
    """Where one image's search stands: the iterate, the nearest adversarial image, its distance, the ball's radius."""

    point: Array
    adversarial: Array
    distance: Array
    epsilon: Array


def to_hyperplane(norm: Norm, point: Array, normal: Array, gap: Array, pixel_range: Range) -> Array:
    """The least z in a norm with normal . (point + z) = normal . point - gap and every pixel in its range.

    Where the range does not reach so far, the z that comes nearest. What the pixels do is `Norm.least`'s.
    """
    # On a tie the other class, whose difference is 0, is still to be raised above the label's.
    direction = -jnp.sign(normal) * jnp.where(gap <= 0, -1.0, 1.0)
    low, high = (jnp.asarray(bound, point.dtype) for bound in pixel_range)
    room = jnp.where(direction > 0, high - point, jnp.where(direction < 0, point - low, 0.0))
    # Scaled, so that a certain network's gradient, whose squares underflow, does no harm.
    slopes = jnp.abs(normal)
    largest = jnp.max(slopes)
    scale = jnp.where(largest > 0, largest, 1.0)
    return direction * norm.least(slopes / scale, jnp.maximum(room, 0.0), jnp.abs(gap) / scale)


def boundary(norm: Norm, goal: Goal, point: Array, targeted: bool = False) -> tuple[Array, Array]:
    """Logit difference to the class whose linearised boundary is nearest, and its gradient.

    With `targeted` that to the class `Goal.target`; where the label is a goal, by how much its target leads.
    """

    def at(difference: Callable[[Array], Array]) -> tuple[Array, Array]:
        """A difference of logits and its gradient, off a tie."""

        def both(x: Array) -> tuple[Array, Array]:
            logits = goal.logits_fn(x)
            return difference(logits), logits

        (gap, logits), gradient = jax.value_and_grad(both, has_aux=True)(point)
        return _off_tie(gap, logits), gradient

    if isinstance(goal.label, tuple):
        return at(lambda logits: cw_margin(logits, goal.label))
    if targeted:
        return at(lambda logits: logits[goal.target] - logits[goal.true_label])
    classes = jnp.arange(jax.eval_shape(goal.logits_fn, point).shape[0])
    gaps, gradients = jax.vmap(lambda other: at(lambda logits: logits[other] - logits[goal.true_label]))(classes)
    # The dual norm of a gradient, by what one unit of steepest ascent gains.
    gains = jax.vmap(lambda g: jnp.sum(g * norm.ascent(g)))(gradients)
    # No step leads to a class whose difference does not change.
    away = jnp.where(gains > 0, jnp.abs(gaps) / jnp.where(gains > 0, gains, 1.0), jnp.inf)
    chosen = jnp.argmin(jnp.where(classes == goal.label, jnp.inf, away))
    return gaps[chosen], gradients[chosen]


def _off_tie(gap: Array, logits: Array) -> Array:
    """A difference of logits; of a tie, on which the label still wins, one that a step of rounding's size resolves."""
    # A class that is masked, of a logit of minus infinity, says nothing of rounding.
    largest = jnp.max(jnp.abs(logits), initial=1.0, where=jnp.isfinite(logits))
    least = 8 * jnp.finfo(gap.dtype).eps * largest
    return jnp.where(jnp.abs(gap) < least, -least, gap)


def fab(
    norm: Norm | str,
    steps: int = 100,
    *,
    targeted: bool = False,
    pixel_range: Range = PIXEL_RANGE,
) -> Search:
    """Builds FAB: each step goes to the nearest linearised boundary, pulled back towards the image.

    With d_1 the least step from the iterate to the hyperplane on which two logits' linearised difference vanishes and
    d_2 that from the image, the next iterate is (1 - a)(x + 1.05 d_1) + a (image + 1.05 d_2), a = |d_1| / (|d_1| +
    |d_2|), at most 0.1; once across, it goes back to 0.9 of its distance. Without `targeted` the boundary is the
    nearest of all classes', which costs a gradient for each; with it that of the class `Goal.target`; where the label
    is a goal, that on which its target becomes the highest. A gradient that is not finite moves nothing.

    The search knows no radius: it has fallen where its least distance is at most epsilon. `end` gives the
    nearest adversarial image whatever its distance, the image itself if there was none.

    Raises:
      ValueError: if there are no steps, or the norm is unknown.
    """
    norm, pixel_range = norm_named(norm), checked_range(pixel_range)
    checked_count("attack step", steps)

    def start(key: Array, goal: Goal) -> Boundary:
        del key
        reached = goal.reached(goal.logits_fn(goal.image))
        distance = jnp.where(reached, 0.0, jnp.inf).astype(goal.image.dtype)
        return Boundary(goal.image, goal.image, distance, jnp.asarray(goal.epsilon, goal.image.dtype))

    def step(goal: Goal, now: Boundary) -> Boundary:
        gap, gradient = boundary(norm, goal, now.point, targeted)
        own = to_hyperplane(norm, now.point, gradient, gap, pixel_range)
        # The same hyperplane, seen from the image.
        far = gap + jnp.sum(gradient * (goal.image - now.point))
        clean = to_hyperplane(norm, goal.image, gradient, far, pixel_range)
        one, other = (jnp.maximum(norm.length(way), 1e-8) for way in (own, clean))
        pull = jnp.minimum(one / (one + other), PULL)
        point = (1 - pull) * (now.point + OVERSHOOT * own) + pull * (goal.image + OVERSHOOT * clean)
        known = jnp.isfinite(gap) & jnp.all(jnp.isfinite(gradient))
        point = jnp.where(known, clipped(point, pixel_range), now.point)
        across = goal.reached(goal.logits_fn(point))
        distance = norm.length(point - goal.image)
        nearer = across & (distance < now.distance)
        return now._replace(
            point=jnp.where(across, goal.image + BACK * (point - goal.image), point),
            adversarial=jnp.where(nearer, point, now.adversarial),
            distance=jnp.where(nearer, distance, now.distance),
        )

    def end(state: Boundary) -> tuple[Array, Array]:
        return state.adversarial, state.distance <= state.epsilon

    return Search(start, step, steps, end, norm, pixel_range)
