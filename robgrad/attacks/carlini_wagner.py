"""Carlini and Wagner's l2 attack (2017): the least perturbation by gradient descent, its weight by bisection."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from robgrad.attacks.losses import cw_margin
from robgrad.attacks.norms import L2
from robgrad.attacks.search import Goal, Search
from robgrad.data import PIXEL_RANGE
from robgrad.data.checks import Range, checked_count, checked_finite_range

# Of the pixel range that the change of variables leaves free, so that its inverse is finite.
_INSIDE = 0.999999


class Descent(NamedTuple):
    """Where one image's search stands.

    Attributes:
      free: the unbounded variable w of x = tanh w, scaled to the pixel range.
      adam: the optimizer's state.
      weight, low, high: of the margin, and the bounds that bisection has found for it.
      crossed: whether this weight has given an adversarial image.
      taken: steps with this weight.
      adversarial, distance: the nearest adversarial image so far, and how far it is.
      epsilon: radius of the ball.
    """

    free: Array
    adam: Any
    weight: Array
    low: Array
    high: Array
    crossed: Array
    taken: Array
    adversarial: Array
    distance: Array
    epsilon: Array


def carlini_wagner(
    steps: int = 1000,
    searches: int = 9,
    *,
    learning_rate: float = 0.01,
    weight: float = 1e-3,
    confidence: float = 0.0,
    pixel_range: Range = PIXEL_RANGE,
) -> Search:
    """Builds the l2 attack of Carlini and Wagner, a minimum-norm attack.

    Adam descends |x - image|^2 + c max(confidence - m(x), 0) by w, x = tanh w scaled to the pixel range, m the margin
    by which the network errs (`cw_margin`; of a goal `(label, target)` that by which the target leads). After `steps`
    the weight c is changed and w begins anew at the image: c is multiplied by 10 until an adversarial image is found,
    and bisected from then on. `attacks.nearest` gives the distance of the nearest one; as for `fab` the image has
    fallen where that is within epsilon.

    Args:
      steps: of Adam for each weight.
      searches: how many weights are tried.
      learning_rate: of Adam.
      weight: the first c. Distances count in pixel units, so that in [-1, 1] it weighs a quarter of what it does in
        [0, 1].
      confidence: margin that is asked for, in logits.
      pixel_range: smallest and largest value of a pixel.

    Raises:
      ValueError: for counts below 1, numbers that are not positive, and a pixel range without an end.
    """
    checked_count("attack step", steps)
    checked_count("search of the weight", searches)
    pixel_range = checked_finite_range(pixel_range)
    for name, number in (("learning_rate", learning_rate), ("weight", weight)):
        if not 0 < number < jnp.inf:
            raise ValueError(f"expected {name} > 0, got {number}")
    if not 0 <= confidence < jnp.inf:
        raise ValueError(f"expected a confidence of 0 or more, got {confidence}")
    adam = optax.adam(learning_rate)

    def middle(image: Array) -> tuple[Array, Array]:
        low, high = (jnp.asarray(bound, image.dtype) for bound in pixel_range)
        return (low + high) / 2, (high - low) / 2

    def inverse(image: Array) -> Array:
        centre, half = middle(image)
        return jnp.arctanh((image - centre) / half * jnp.asarray(_INSIDE, image.dtype))

    def point_of(free: Array, image: Array) -> Array:
        centre, half = middle(image)
        return centre + half * jnp.tanh(free)

    def start(key: Array, goal: Goal) -> Descent:
        del key
        number = lambda value: jnp.asarray(value, goal.image.dtype)  # noqa: E731
        free, reached = inverse(goal.image), goal.reached(goal.logits_fn(goal.image))
        distance = jnp.where(reached, number(0.0), number(jnp.inf))
        bounds = number(weight), number(0.0), number(jnp.inf)
        counted = jnp.array(False), jnp.int32(0)
        return Descent(free, adam.init(free), *bounds, *counted, goal.image, distance, number(goal.epsilon))

    def step(goal: Goal, now: Descent) -> Descent:
        def loss(free: Array) -> tuple[Array, tuple[Array, Array]]:
            point = point_of(free, goal.image)
            logits = goal.logits_fn(point)
            short = jnp.maximum(confidence - cw_margin(logits, goal.label), 0.0)
            return jnp.sum((point - goal.image) ** 2) + now.weight * short, (point, logits)

        slope, (point, logits) = jax.grad(loss, has_aux=True)(now.free)
        across = goal.reached(logits) & (cw_margin(logits, goal.label) >= confidence)
        distance = L2.length(point - goal.image)
        nearer = across & (distance < now.distance)
        known = jnp.all(jnp.isfinite(slope))
        change, state = adam.update(jnp.where(known, slope, 0.0), now.adam)
        moved = now._replace(
            free=now.free + change,
            adam=state,
            crossed=now.crossed | across,
            taken=now.taken + 1,
            adversarial=jnp.where(nearer, point, now.adversarial),
            distance=jnp.where(nearer, distance, now.distance),
        )
        return jax.tree.map(lambda one, two: jnp.where(moved.taken == steps, one, two), anew(goal, moved), moved)

    def anew(goal: Goal, now: Descent) -> Descent:
        """The next weight, from the image again."""
        high = jnp.where(now.crossed, jnp.minimum(now.high, now.weight), now.high)
        low = jnp.where(now.crossed, now.low, jnp.maximum(now.low, now.weight))
        further = jnp.where(jnp.isfinite(high), (low + high) / 2, 10 * now.weight)
        free = inverse(goal.image)
        return now._replace(
            free=free,
            adam=adam.init(free),
            weight=further,
            low=low,
            high=high,
            crossed=jnp.array(False),
            taken=jnp.int32(0),
        )

    def end(state: Descent) -> tuple[Array, Array]:
        return state.adversarial, state.distance <= state.epsilon

    return Search(start, step, steps * searches, end, L2, pixel_range)
