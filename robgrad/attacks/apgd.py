"""Auto-PGD (Croce and Hein, 2020, algorithm 1): projected ascent that needs no step size."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.attacks.apgd_l1 import apgd_l1
from robgrad.attacks.losses import Loss, checked_loss, cross_entropy
from robgrad.attacks.norms import L1, Norm, ascent, norm_named
from robgrad.attacks.search import Goal, Search, evaluated
from robgrad.data import PIXEL_RANGE
from robgrad.data.checks import Range, checked_count, checked_range, clipped

# The paper's constants: first period, its decrease and least as shares of the steps; share of steps that must rise;
# weight of the step against the momentum.
FIRST, DECREASE, LEAST, RISING, WEIGHT = 0.22, 0.03, 0.06, 0.75, 0.75


class Ascent(NamedTuple):
    """Where one image's ascent stands.

    Attributes:
      point, before: the iterate and the one before it.
      gradient: of the loss at the iterate.
      best, best_gradient, best_loss: of the highest loss so far.
      adversarial, fallen: the last iterate that reaches the goal, and whether there was one.
      step_size: of the next step.
      loss: at the iterate.
      taken: steps taken; `since` the last checkpoint, `period` until the next.
      rises: steps since the last checkpoint that raised the loss.
      checked_loss: the best loss at the last checkpoint; `halved` whether the step size was halved there.
    """

    point: Array
    before: Array
    gradient: Array
    best: Array
    best_gradient: Array
    best_loss: Array
    adversarial: Array
    fallen: Array
    step_size: Array
    loss: Array
    taken: Array
    since: Array
    period: Array
    rises: Array
    checked_loss: Array
    halved: Array


def apgd(
    norm: Norm | str,
    loss: Loss = cross_entropy,
    steps: int = 100,
    *,
    targeted: bool = False,
    samples: int = 1,
    pixel_range: Range = PIXEL_RANGE,
) -> Search:
    """Builds Auto-PGD: ascent with momentum from a random point of the sphere, starting with steps of 2 epsilon.

    At checkpoints, 0.22 of the steps after the start and then ever sooner, the step is halved and the search goes back
    to the best point, if fewer than 0.75 of the steps since have raised the loss, or neither the step size nor the
    best loss has changed. A loss that is NaN counts as the lowest, and a gradient that is not finite moves nothing. In
    l1 the ascent is sparse, see `apgd_l1`.

    Args:
      norm: norm of the ball.
      loss: `(logits, label)` to ascend; where `targeted`, `(logits, (label, target class))`.
      steps: number of steps, at least 1.
      targeted: whether the loss is told a class to aim at, `Goal.target`.
      samples: evaluations that a gradient is averaged over, for networks that are random.
      pixel_range: smallest and largest value of a pixel; numbers, or one for each channel.

    Raises:
      ValueError: if there are no steps, or the norm is unknown.
    """
    norm, pixel_range, loss = norm_named(norm), checked_range(pixel_range), checked_loss(loss)
    checked_count("attack step", steps)
    checked_count("sample", samples)
    if norm is L1:
        return apgd_l1(loss, steps, targeted=targeted, samples=samples, pixel_range=pixel_range)
    first, decrease, least = (max(int(share * steps), 1) for share in (FIRST, DECREASE, LEAST))

    seen_at = partial(evaluated, loss, targeted, samples)

    def within(goal: Goal, point: Array) -> Array:
        return clipped(goal.image + norm.project(point - goal.image, goal.epsilon), pixel_range)

    def start(key: Array, goal: Goal) -> Ascent:
        direction = norm.random_start(key, goal.image, jnp.ones((), goal.image.dtype))
        length = norm.length(direction)
        point = within(goal, goal.image + goal.epsilon * direction / jnp.where(length > 0, length, 1.0))
        height, gradient, fallen = seen_at(goal, point)
        zero = jnp.int32(0)
        return Ascent(
            *(point, point, gradient, point, gradient, height, point, fallen, 2.0 * goal.epsilon, height),
            *(zero, zero, jnp.int32(first), zero, height, jnp.array(True)),
        )

    def step(goal: Goal, now: Ascent) -> Ascent:
        weight = jnp.where(now.taken > 0, WEIGHT, 1.0)
        straight = within(goal, now.point + now.step_size * ascent(norm, now.gradient))
        carried = weight * (straight - now.point) + (1 - weight) * (now.point - now.before)
        point = within(goal, now.point + carried)
        height, gradient, reached = seen_at(goal, point)
        better = height > now.best_loss
        moved = now._replace(
            point=point,
            before=now.point,
            gradient=gradient,
            best=jnp.where(better, point, now.best),
            best_gradient=jnp.where(better, gradient, now.best_gradient),
            best_loss=jnp.where(better, height, now.best_loss),
            adversarial=jnp.where(reached, point, now.adversarial),
            fallen=now.fallen | reached,
            loss=height,
            taken=now.taken + 1,
            since=now.since + 1,
            rises=now.rises + (height > now.loss),
        )
        return jax.tree.map(
            lambda a, b: jnp.where(moved.since == moved.period, a, b), _checked(moved, decrease, least), moved
        )

    def end(state: Ascent) -> tuple[Array, Array]:
        return jnp.where(state.fallen, state.adversarial, state.best), state.fallen

    return Search(start, step, steps, end, norm, pixel_range)


def _checked(now: Ascent, decrease: int, least: int) -> Ascent:
    """The state after a checkpoint."""
    few = now.rises <= RISING * now.period
    stuck = ~now.halved & (now.checked_loss >= now.best_loss)
    halve = few | stuck
    return now._replace(
        point=jnp.where(halve, now.best, now.point),
        gradient=jnp.where(halve, now.best_gradient, now.gradient),
        step_size=jnp.where(halve, now.step_size / 2, now.step_size),
        since=jnp.int32(0),
        period=jnp.maximum(now.period - decrease, least),
        rises=jnp.int32(0),
        checked_loss=now.best_loss,
        halved=halve,
    )
