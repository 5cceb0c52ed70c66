"""Attacks that go step by step, so that what an image no longer needs is not computed.

A `Search` is an attack cut into a start and equal steps of one image. Run to its end it is an `Attack`
(`as_attack`); `auto_attack` runs many images some steps at a time and lets those that have fallen make room.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.attacks.losses import Loss, succeeded
from robgrad.attacks.norms import Norm
from robgrad.attacks.pgd import InBall
from robgrad.data.checks import Range
from robgrad.networks import LogitsFn


class Goal(NamedTuple):
    """What an attack on one image is about.

    Attributes:
      logits_fn: the network, image to logits.
      image: the clean image.
      label: its class, or a goal `(label, target)`, by which alone the target counts as success.
      epsilon: radius of the ball, in pixel units.
      target: the class aimed at, for targeted attacks.
    """

    logits_fn: LogitsFn
    image: Array
    label: Any
    epsilon: Array
    target: Array | int = 0

    @property
    def true_label(self) -> Array:
        """The image's class, whatever the goal."""
        return self.label[0] if isinstance(self.label, tuple) else self.label

    def reached(self, logits: Array) -> Array:
        """Whether these logits are what the attack is after."""
        return succeeded(logits, self.label)


def evaluated(loss: Loss, targeted: bool, samples: int, goal: Goal, point: Array) -> tuple[Array, Array, Array]:
    """Loss at a point, its gradient as the mean of some evaluations, and whether the point reaches the goal.

    A loss that is NaN counts as the lowest. Where `targeted`, the loss is given `(label, Goal.target)`.
    """
    label = (goal.true_label, goal.target) if targeted else goal.label

    def value(point: Array):
        logits = goal.logits_fn(point)
        return loss(logits, label), logits

    pairs = [jax.value_and_grad(value, has_aux=True)(point) for _ in range(samples)]
    (height, logits), _ = pairs[0]
    gradient = sum((slope for _, slope in pairs[1:]), pairs[0][1]) / samples
    return jnp.where(jnp.isnan(height), -jnp.inf, height), gradient, goal.reached(logits)


def targets(logits: Array, label: Array) -> Array:
    """The classes other than the label, that of the highest logit first, `[C - 1]`."""
    own = jnp.arange(logits.size) == label
    # The label comes last whatever its logit, and before it what is NaN.
    return jnp.lexsort((-jnp.where(jnp.isnan(logits), -jnp.inf, logits), own))[:-1]


class Search(NamedTuple):
    """An attack by steps on one image; states are pytrees of fixed shape.

    Attributes:
      start: `(key, goal)` to the first state.
      step: `(goal, state)` to the next.
      steps: how many there are.
      end: state to `(image, fallen)`: the best image found, and whether it is adversarial and within the ball.
      norm: of the ball.
      pixel_range: smallest and largest value of a pixel.
    """

    start: Callable[[Array, Goal], Any]
    step: Callable[[Goal, Any], Any]
    steps: int
    end: Callable[[Any], tuple[Array, Array]]
    norm: Norm
    pixel_range: Range

    def __call__(self, *_, **__):
        """Refuses what wants an attack, and says how to make one."""
        raise ValueError("expected an attack, got a search, which goes by steps: give attacks.as_attack(search)")


def checked_search(search: Any) -> Search:
    """A search, if it is one.

    Raises:
      ValueError: if it is not.
    """
    if not isinstance(search, Search):
        raise ValueError(f"expected a search, such as attacks.fab(norm), got {type(search).__name__}")
    return search


def as_attack(search: Search) -> InBall:
    """The whole search as an attack on one image; it has no use for a step size.

    A targeted search aims at the target of a goal `(label, target)`, or where the label is a class at the runner-up.
    What a search finds beyond the ball, as FAB may, is brought back to it.

    Raises:
      ValueError: if it is no search.
    """
    checked_search(search)

    def attack(key, logits_fn, image, label, epsilon, step_size):
        del step_size
        target = label[1] if isinstance(label, tuple) else targets(logits_fn(image), label)[0]
        goal = Goal(logits_fn, image, label, epsilon, target)
        state = lax.fori_loop(0, search.steps, lambda _, state: search.step(goal, state), search.start(key, goal))
        return search.end(state)[0]

    return InBall(attack, search.norm, search.pixel_range, needs_step=False)
