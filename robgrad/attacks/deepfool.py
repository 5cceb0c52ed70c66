"""DeepFool (Moosavi-Dezfooli et al., 2016): straight to the nearest linearised boundary until the class has changed."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from robgrad.attacks.fab import boundary, to_hyperplane
from robgrad.attacks.norms import Norm, norm_named
from robgrad.attacks.search import Goal, Search
from robgrad.data import PIXEL_RANGE
from robgrad.data.checks import Range, checked_count, checked_range, clipped


class Way(NamedTuple):
    """Where one image's search stands: the way gone without overshoot, the point with it, whether it is across."""

    moved: Array
    point: Array
    across: Array
    distance: Array
    epsilon: Array


def deepfool(norm: Norm | str, steps: int = 50, *, overshoot: float = 0.02, pixel_range: Range = PIXEL_RANGE) -> Search:
    """Builds DeepFool, a minimum-norm attack: it ends as soon as the class has changed.

    With r_i the least step from the point x_i to the nearest boundary of the linearised network, each step goes to
    x_{i+1} = image + (1 + overshoot) sum_{k <= i} r_k. Steps keep to the pixel range, where the paper's know none; a
    gradient that is not finite moves nothing. As for `fab`, the image has fallen where the end is within epsilon;
    `attacks.nearest` gives the distance. Where the label is a goal `(label, target)`, the boundary is the target's.

    Args:
      norm: of the steps; the paper has l2, and l-inf by the dual norm.
      steps: at most.
      overshoot: share by which the boundary is overshot; the paper has 0.02.
      pixel_range: smallest and largest value of a pixel.

    Raises:
      ValueError: if there are no steps, the overshoot is negative, or the norm is unknown.
    """
    norm, pixel_range = norm_named(norm), checked_range(pixel_range)
    checked_count("attack step", steps)
    if not 0 <= overshoot < jnp.inf:
        raise ValueError(f"expected an overshoot of 0 or more, got {overshoot}")

    def start(key: Array, goal: Goal) -> Way:
        del key
        across = goal.reached(goal.logits_fn(goal.image))
        zero = jnp.zeros((), goal.image.dtype)
        return Way(
            jnp.zeros_like(goal.image),
            goal.image,
            across,
            jnp.where(across, zero, jnp.inf),
            jnp.asarray(goal.epsilon, goal.image.dtype),
        )

    def step(goal: Goal, now: Way) -> Way:
        gap, gradient = boundary(norm, goal, now.point)
        way = to_hyperplane(norm, now.point, gradient, gap, pixel_range)
        known = jnp.isfinite(gap) & jnp.all(jnp.isfinite(gradient)) & ~now.across
        moved = jnp.where(known, now.moved + way, now.moved)
        point = jnp.where(known, clipped(goal.image + (1 + overshoot) * moved, pixel_range), now.point)
        across = now.across | goal.reached(goal.logits_fn(point))
        return now._replace(
            moved=moved,
            point=point,
            across=across,
            distance=jnp.where(across, norm.length(point - goal.image), jnp.inf),
        )

    def end(state: Way) -> tuple[Array, Array]:
        return state.point, state.across & (state.distance <= state.epsilon)

    return Search(start, step, steps, end, norm, pixel_range)
