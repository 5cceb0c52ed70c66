"""Projected gradient attacks on one example; `jax.vmap` makes batches.

Structure (norm, loss, steps) is chosen when an attack is built, numbers (epsilon, step size) when it is called, so
that no change of numbers compiles anything anew.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.attacks.losses import Loss
from robgrad.attacks.norms import Norm, norm_named
from robgrad.data import PIXEL_RANGE
from robgrad.data.images import checked_example
from robgrad.networks import LogitsFn

Attack = Callable[[Array, LogitsFn, Array, Any, Array, Array], Array]


def pgd(
    norm: Norm | str,
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
      norm: `L2`, `LINF`, another `Norm`, or the name of one in `NORMS`.
      loss: `(logits, label) -> scalar` to ascend; `label` is whatever the loss understands, for instance the
        clean prediction's probabilities.
      steps: number of steps, at least 1.
      random_start: start at a uniform point of the ball instead of at the image.
      pixel_range: smallest and largest value of a pixel.

    Returns:
      `attack(key, logits_fn, image, label, epsilon, step_size)` to the attacked image, for one image of
      any shape; `epsilon` and `step_size` are scalars in pixel units. Where the gradient is zero, or
      `epsilon` is, the image comes back unchanged. It raises `DataError` or `ValueError` in one line for what it
      cannot mean; values are looked at where they are known, not within `jit` and `vmap`.

    Raises:
      ValueError: if `steps` is below 1, the pixel range is empty or the norm is unknown.
    """
    norm = norm_named(norm)
    if steps < 1:
        raise ValueError(f"expected at least 1 attack step, got {steps}")
    if not pixel_range[0] < pixel_range[1]:
        raise ValueError(f"expected a pixel range (low, high) with low < high, got {pixel_range}")

    def attack(key, logits_fn, image, label, epsilon, step_size):
        image = checked_example(logits_fn, image, label, epsilon=epsilon, step_size=step_size)
        gradient = jax.grad(lambda x: loss(logits_fn(x), label))

        def within(perturbation):
            return jnp.clip(image + norm.project(perturbation, epsilon), *pixel_range)

        def step(_, attacked):
            moved = attacked + step_size * norm.ascent(gradient(attacked))
            return within(moved - image)

        start = within(norm.random_start(key, image, epsilon)) if random_start else image
        return lax.fori_loop(0, steps, step, start)

    return attack


def pgd_restarts(
    norm: Norm | str,
    loss: Loss,
    steps: int,
    *,
    restarts: int = 5,
    pixel_range: tuple[float, float] = PIXEL_RANGE,
) -> Attack:
    """Builds `pgd` from the image and from random points of the ball, which keeps each image's worst.

    Of `restarts` attacks, the first from the image itself, the one whose end has the highest loss counts; an end
    that the network classifies wrong comes before every one that it does not, where the label is a class.

    Args:
      norm, loss, steps, pixel_range: as for `pgd`.
      restarts: attacks in all, at least 1.

    Raises:
      ValueError: as `pgd`, and if `restarts` is below 1.
    """
    if restarts < 1:
        raise ValueError(f"expected at least 1 restart, got {restarts}")
    first = pgd(norm, loss, steps, pixel_range=pixel_range)
    again = pgd(norm, loss, steps, random_start=True, pixel_range=pixel_range)

    def attack(key, logits_fn, image, label, epsilon, step_size):
        def rank(attacked):
            logits = logits_fn(attacked)
            wrong = logits.argmax() != label if jnp.ndim(label) == 0 else jnp.array(False)
            return wrong, loss(logits, label)

        def better(one, other):
            (one_wrong, one_loss), (other_wrong, other_loss) = one, other
            return jnp.where(one_wrong == other_wrong, one_loss > other_loss, one_wrong)

        def turn(index, carry):
            best, best_rank = carry
            attacked = again(jax.random.fold_in(key, index), logits_fn, image, label, epsilon, step_size)
            new_rank = rank(attacked)
            wins = better(new_rank, best_rank)
            return jax.tree.map(partial(jnp.where, wins), (attacked, new_rank), (best, best_rank))

        start = first(key, logits_fn, image, label, epsilon, step_size)
        return lax.fori_loop(1, restarts, turn, (start, rank(start)))[0]

    return attack


def no_attack(key, logits_fn, image, label, epsilon, step_size):
    """The attack that leaves the image as it is: what standard training trains against."""
    del key, logits_fn, label, epsilon, step_size
    return image
