"""Attacks that go step by step, so that what an image no longer needs is not computed.

A `Search` is an attack cut into a start and equal steps of one image. Run to its end it is an `Attack`
(`as_attack`); `auto_attack` runs many images some steps at a time and lets those that have fallen make room.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from robgrad.attacks.pgd import Attack
from robgrad.data.images import checked_example
from robgrad.networks import LogitsFn


class Goal(NamedTuple):
    """What an attack on one image is about.

    Attributes:
      logits_fn: the network, image to logits.
      image: the clean image.
      label: its class.
      epsilon: radius of the ball, in pixel units.
      target: the class aimed at, for targeted attacks.
    """

    logits_fn: LogitsFn
    image: Array
    label: Array
    epsilon: Array
    target: Array | int = 0


def targets(logits: Array, label: Array) -> Array:
    """The classes other than the label, that of the highest logit first, `[C - 1]`."""
    others = jnp.where(jnp.arange(logits.size) == label, -jnp.inf, logits)
    return jnp.argsort(-others)[:-1]


class Search(NamedTuple):
    """An attack by steps on one image; states are pytrees of fixed shape.

    Attributes:
      start: `(key, goal)` to the first state.
      step: `(goal, state)` to the next.
      steps: how many there are.
      end: state to `(image, fallen)`: the best image found, and whether it is adversarial and within the ball.
    """

    start: Callable[[Array, Goal], Any]
    step: Callable[[Goal, Any], Any]
    steps: int
    end: Callable[[Any], tuple[Array, Array]]


def as_attack(search: Search) -> Attack:
    """The whole search as an attack on one image, a targeted one at the runner-up; it has no use for a step size."""

    def attack(key, logits_fn, image, label, epsilon, step_size):
        del step_size
        image = checked_example(logits_fn, image, label, epsilon=epsilon)
        target = targets(logits_fn(image), label)[0]
        goal = Goal(logits_fn, image, label, epsilon, target)
        state = lax.fori_loop(0, search.steps, lambda _, state: search.step(goal, state), search.start(key, goal))
        return search.end(state)[0]

    return attack
