"""Auto-PGD in l1 (Croce and Hein, 2021, 'Mind the box'): sparse ascent in the ball and the pixel range at once."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.attacks.losses import Loss
from robgrad.attacks.norms import L1, l1_within
from robgrad.attacks.search import Goal, Search, evaluated
from robgrad.data.checks import Range, clipped

# The paper's constants: balls of the three phases in units of epsilon, and the first two phases' shares of the steps;
# share of steps between checkpoints; by what the number of pixels and the step shrink, and what counts as fewer pixels;
# the least step.
BALLS, PHASE, PERIOD, SHRINK, FEWER, LEAST = (3.0, 2.0, 1.0), 0.3, 0.04, 1.5, 0.95, 0.1


class Sparse(NamedTuple):
    """Where one image's ascent stands.

    Attributes:
      point, gradient: the iterate, and the loss gradient there.
      best, best_gradient, best_loss: of the highest loss so far in this phase.
      adversarial, fallen: the last iterate of the last phase that reaches the goal, and whether there was one.
      share: of the pixels that the next step moves; `pixels` moved at the last checkpoint by the best point.
      step_size: of the next step, in l1.
      taken: steps taken; `since` the last checkpoint.
    """

    point: Array
    gradient: Array
    best: Array
    best_gradient: Array
    best_loss: Array
    adversarial: Array
    fallen: Array
    share: Array
    pixels: Array
    step_size: Array
    taken: Array
    since: Array


def apgd_l1(loss: Loss, steps: int, *, targeted: bool, samples: int, pixel_range: Range) -> Search:
    """Builds Auto-PGD in l1; arguments as for `apgd`, which calls it.

    Each step goes `step_size` along the signs of the gradient's largest entries, shared equally among them, and is
    projected onto the intersection of the ball and the pixel range. At checkpoints, every 0.04 of the steps, as many
    pixels are kept as 1 / 1.5 of those that the best point moves; where these have become fewer the search goes back to
    the best point and to steps of epsilon, otherwise steps shrink by 1.5, to a tenth of epsilon at least. Three phases
    search balls of 3, 2 and 1 epsilon, in 0.3, 0.3 and 0.4 of the steps, each from the best point of the one before.
    """
    early = min(math.ceil(PHASE * steps), steps)
    period = max(int(PERIOD * steps), 1)
    # A phase begins with a projection, which is an evaluation more.
    second, third = early, 2 * early + 1
    seen_at = partial(evaluated, loss, targeted, samples)

    def within(goal: Goal, point: Array, radius: Array) -> Array:
        return clipped(goal.image + l1_within(goal.image, point - goal.image, radius, pixel_range), pixel_range)

    def pixels_of(goal: Goal, point: Array) -> Array:
        return jnp.sum(point != goal.image).astype(point.dtype)

    def start(key: Array, goal: Goal) -> Sparse:
        radius = BALLS[0] * jnp.asarray(goal.epsilon, goal.image.dtype)
        noise = jax.random.normal(key, goal.image.shape, goal.image.dtype)
        point = within(goal, goal.image + noise, radius)
        height, gradient, _ = seen_at(goal, point)
        pixels, zero = pixels_of(goal, point), jnp.int32(0)
        # Nothing has fallen before the last phase.
        return Sparse(
            *(point, gradient, point, gradient, height, goal.image, jnp.array(False)),
            *(pixels / goal.image.size / SHRINK, pixels, radius, zero, zero),
        )

    def step(goal: Goal, now: Sparse) -> Sparse:
        phase = (now.taken >= second).astype(jnp.int32) + (now.taken >= third)
        radius = jnp.asarray(BALLS, goal.image.dtype)[phase] * goal.epsilon
        begins = (now.taken == second) | (now.taken == third)
        ahead = now.point + now.step_size * _sparse_ascent(now.gradient, now.share)
        point = within(goal, jnp.where(begins, now.best, ahead), radius)
        height, gradient, reached = seen_at(goal, point)
        better = begins | (height > now.best_loss)
        falls = reached & (now.taken >= third)
        pixels = pixels_of(goal, point)
        moved = Sparse(
            point=point,
            gradient=gradient,
            best=jnp.where(better, point, now.best),
            best_gradient=jnp.where(better, gradient, now.best_gradient),
            best_loss=jnp.where(better, height, now.best_loss),
            adversarial=jnp.where(falls, point, now.adversarial),
            fallen=now.fallen | falls,
            share=jnp.where(begins, pixels / goal.image.size / SHRINK, now.share),
            pixels=jnp.where(begins, pixels, now.pixels),
            step_size=jnp.where(begins, radius, now.step_size),
            taken=now.taken + 1,
            since=jnp.where(begins, 0, now.since + 1),
        )
        checked = _checked(moved, pixels_of(goal, moved.best), radius)
        return jax.tree.map(lambda a, b: jnp.where(moved.since == period, a, b), checked, moved)

    def end(state: Sparse) -> tuple[Array, Array]:
        return jnp.where(state.fallen, state.adversarial, state.best), state.fallen

    # At least one step in the last phase.
    return Search(start, step, max(steps + 2, third + 2), end, L1, pixel_range)


def _sparse_ascent(gradient: Array, share: Array) -> Array:
    """Signs of the largest entries, a share of all, of l1 length 1; none where the gradient is not finite."""
    sizes = jnp.abs(gradient)
    place = jnp.clip(((1 - share) * gradient.size).astype(jnp.int32), 0, gradient.size - 1)
    signs = jnp.sign(gradient) * (sizes >= jnp.sort(jnp.ravel(sizes))[place])
    known = jnp.all(jnp.isfinite(gradient))
    return jnp.where(known, signs / jnp.maximum(jnp.sum(jnp.abs(signs)), 1.0), 0.0)


def _checked(now: Sparse, pixels: Array, radius: Array) -> Sparse:
    """The state after a checkpoint, the best point moving so many pixels."""
    fewer = pixels < FEWER * now.pixels
    return now._replace(
        point=jnp.where(fewer, now.best, now.point),
        gradient=jnp.where(fewer, now.best_gradient, now.gradient),
        share=pixels / now.point.size / SHRINK,
        pixels=pixels,
        step_size=jnp.where(fewer, radius, jnp.maximum(now.step_size / SHRINK, LEAST * radius)),
        since=jnp.int32(0),
    )
