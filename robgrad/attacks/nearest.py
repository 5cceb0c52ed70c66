"""Minimum-norm attacks: how far away the nearest adversarial image is that a search finds."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from robgrad.attacks.search import Goal, Search, checked_search, targets
from robgrad.data.calls import checked_example, within_range
from robgrad.data.images import DataError
from robgrad.networks import LogitsFn


class Nearest(NamedTuple):
    """The nearest adversarial image that was found, and its distance in the search's norm, in pixel units.

    Where none was found the image is the one given, and the distance is infinite; where the network is wrong from the
    start, or the goal is reached, the distance is 0.
    """

    image: Array
    distance: Array


def nearest(search: Search) -> Callable[..., Nearest]:
    """Builds `(key, logits_fn, image, label) -> Nearest` for one image, from a search that knows no radius.

    Args:
      search: `fab`, `deepfool` or `carlini_wagner`. The label may be a goal `(label, target)`.

    Raises:
      ValueError: if it is no search.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robgrad import attacks
      >>> logits_fn = lambda image: jnp.stack([image.sum(), -image.sum()])
      >>> find = attacks.nearest(attacks.deepfool("l2"))
      >>> found = find(jax.random.key(0), logits_fn, jnp.full((2, 2, 1), 0.5), 0)
      >>> round(float(found.distance), 2)  # the plane of equal logits is 1 away
      1.02
    """
    checked_search(search)

    def find(key, logits_fn: LogitsFn, image, label) -> Nearest:
        if label is None or (not isinstance(label, tuple) and jnp.ndim(label)):
            raise DataError(f"expected the image's class, or a goal (label, target), got {label}")
        image = within_range(checked_example(logits_fn, image, label), search.pixel_range)
        target = label[1] if isinstance(label, tuple) else targets(logits_fn(image), label)[0]
        goal = Goal(logits_fn, image, label, jnp.asarray(jnp.inf, image.dtype), target)
        state = lax.fori_loop(0, search.steps, lambda _, state: search.step(goal, state), search.start(key, goal))
        end, fallen = search.end(state)
        found = fallen & goal.reached(logits_fn(end))
        end = jnp.where(found, end, image)
        return Nearest(end, jnp.where(found, search.norm.length(end - image), jnp.inf))

    return find
