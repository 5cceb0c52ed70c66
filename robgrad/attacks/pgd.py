"""Projected gradient attacks on one example; `jax.vmap` makes batches.

Structure (norm, loss, steps) is chosen when an attack is built, numbers (epsilon, step size) when it is called, so
that no change of numbers compiles anything anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad.attacks.losses import Loss, checked_loss, succeeded
from robgrad.attacks.norms import Norm, ascent, ended, norm_named
from robgrad.data import PIXEL_RANGE, DataError
from robgrad.data.calls import checked_example, checked_numbers, known, within_range
from robgrad.data.checks import Range, checked_count, checked_range, clipped
from robgrad.networks import LogitsFn

Attack = Callable[[Array, LogitsFn, Array, Any, Array, Array], Array]


@dataclass(frozen=True)
class InBall:
    """An attack that ends inside its ball and pixel range, and says which: what all builders of attacks here make.

    Attributes:
      run: `(key, logits_fn, image, label, epsilon, step_size)` to a point; what it is given has been checked.
      norm: of the ball.
      pixel_range: smallest and largest value of a pixel, numbers or one for each channel.
      needs_step: whether it stays at the image where the step size is 0.
    """

    run: Attack
    norm: Norm
    pixel_range: Range = PIXEL_RANGE
    needs_step: bool = True

    def __call__(self, key, logits_fn, image, label, epsilon, step_size):
        """The attacked image: the point that the attack reaches, rounded into ball and range; see `pgd`."""
        if label is None:
            raise DataError("expected the image's label, or a goal (label, target), got none")
        image = within_range(checked_example(logits_fn, image, label), self.pixel_range)
        epsilon, step_size = checked_numbers(image.dtype, epsilon=epsilon, step_size=step_size)
        point = self.run(key, logits_fn, image, label, epsilon, step_size)
        return ended(self.norm, image, point, epsilon, self.pixel_range)


def pgd(
    norm: Norm | str,
    loss: Loss,
    steps: int,
    *,
    random_start: bool | float = False,
    pixel_range: Range = PIXEL_RANGE,
) -> InBall:
    """Builds projected gradient ascent of a loss in a ball around the image (Madry et al., 2018).

    Each step moves by `step_size` along the norm's direction of steepest ascent, projects the
    perturbation onto the ball of radius `epsilon`, and clips the pixels to their range. A step may be
    longer than the ball is wide. Where the gradient is not finite the image stays where it is.

    Args:
      norm: `L2`, `LINF`, another `Norm`, or the name of one in `NORMS`.
      loss: `(logits, label) -> scalar` to ascend; `label` is whatever the loss understands, for instance the
        clean prediction's probabilities.
      steps: number of steps, at least 1.
      random_start: start at a uniform point of the ball instead of at the image; a number: at the image with normal
        noise of that deviation, projected onto the ball (0.001, in a pixel range [0, 1], is that of TRADES' authors).
      pixel_range: smallest and largest value of a pixel; numbers, or one for each channel.

    Returns:
      `attack(key, logits_fn, image, label, epsilon, step_size)` to the attacked image, for one image of
      any shape; `epsilon` and `step_size` are scalars in pixel units. A label `(label, target)` is a goal: the attack
      leads to the target. Where the gradient is zero, or `epsilon` is, the image comes back unchanged; no pixel leaves
      ball or range, also in double precision. It raises `DataError` or `ValueError` in one line for what it cannot
      mean; values are looked at where they are known, not within `jit`. On a CPU a function with convolutions of
      another library is many times faster through `networks.with_fast_convolutions` (modules have it already).

    Raises:
      ValueError: if `steps` is below 1, the pixel range is empty or the norm is unknown.
    """
    norm, pixel_range, loss = norm_named(norm), checked_range(pixel_range), checked_loss(loss)
    checked_count("attack step", steps)
    uniform = isinstance(random_start, bool | np.bool_)
    if not uniform and not (np.isfinite(random_start) and random_start >= 0):
        raise ValueError(f"expected a random start of True, False or a deviation of 0 or more, got {random_start}")

    def attack(key, logits_fn, image, label, epsilon, step_size):
        gradient = jax.grad(lambda x: loss(logits_fn(x), label))

        def within(perturbation):
            return clipped(image + norm.project(perturbation, epsilon), pixel_range)

        def step(_, attacked):
            moved = attacked + step_size * ascent(norm, gradient(attacked))
            return within(moved - image)

        start = image
        if random_start and uniform:
            start = within(norm.random_start(key, image, epsilon))
        elif random_start:
            start = within(random_start * jax.random.normal(key, image.shape, image.dtype))
        return lax.fori_loop(0, steps, step, start)

    return InBall(attack, norm, pixel_range, needs_step=not random_start)


def pgd_restarts(
    norm: Norm | str,
    loss: Loss,
    steps: int,
    *,
    restarts: int = 5,
    pixel_range: Range = PIXEL_RANGE,
) -> InBall:
    """Builds `pgd` from the image and from random points of the ball, which keeps each image's worst.

    Of `restarts` attacks, the first from the image itself, the one whose end has the highest loss counts; an end
    that reaches the goal, another class than the label or the target of a goal `(label, target)`, comes before every
    one that does not.

    Args:
      norm, loss, steps, pixel_range: as for `pgd`.
      restarts: attacks in all, at least 1.

    Raises:
      ValueError: as `pgd`, and if `restarts` is below 1.
    """
    checked_count("restart", restarts)
    first = pgd(norm, loss, steps, pixel_range=pixel_range)
    again = pgd(norm, loss, steps, random_start=True, pixel_range=pixel_range)

    def attack(key, logits_fn, image, label, epsilon, step_size):
        def rank(attacked):
            # Of the point as it will be given back.
            logits = logits_fn(ended(first.norm, image, attacked, epsilon, first.pixel_range))
            height = loss(logits, label)
            return succeeded(logits, label), jnp.where(jnp.isnan(height), -jnp.inf, height)

        def better(one, other):
            (one_done, one_loss), (other_done, other_loss) = one, other
            return jnp.where(one_done == other_done, one_loss > other_loss, one_done)

        def turn(index, carry):
            best, best_rank = carry
            attacked = again.run(jax.random.fold_in(key, index), logits_fn, image, label, epsilon, step_size)
            new_rank = rank(attacked)
            wins = better(new_rank, best_rank)
            return jax.tree.map(partial(jnp.where, wins), (attacked, new_rank), (best, best_rank))

        start = first.run(key, logits_fn, image, label, epsilon, step_size)
        return lax.fori_loop(1, restarts, turn, (start, rank(start)))[0]

    return InBall(attack, first.norm, first.pixel_range)


def sizes_given(attack: Attack, epsilon: Any, step_size: Any) -> tuple[Any, Any]:
    """Radius and step size for an attack on a set of images; 0 where they are None and it has no use for them.

    Raises:
      ValueError: if one is missing, or the step size is 0 where the radius is not: the attack would not move.
    """
    if attack is no_attack:
        return 0.0 if epsilon is None else epsilon, 0.0 if step_size is None else step_size
    needs_step = getattr(attack, "needs_step", True)
    if epsilon is None or (step_size is None and needs_step):
        missing = "epsilon" if epsilon is None else "step_size"
        raise ValueError(f"expected epsilon and step_size of the attack, in pixel units, got no {missing}")
    step_size = 0.0 if step_size is None else step_size
    check_moves(attack, epsilon, step_size)
    return epsilon, step_size


def check_moves(attack: Any, epsilon: Any, step_size: Any) -> None:
    """Refuses a step size of 0 at a radius above 0, for an attack that needs one."""
    radii, steps = (np.asarray(known(number)) for number in (epsilon, step_size))
    if not getattr(attack, "needs_step", False) or radii.dtype == object or steps.dtype == object:
        return
    if radii.dtype.kind in "fiu" and steps.dtype.kind in "fiu" and np.any((radii > 0) & (steps == 0)):
        raise ValueError("expected a step size above 0 where the radius (epsilon) is, got 0: the attack would not move")


def no_attack(key, logits_fn, image, label, epsilon, step_size):
    """The attack that leaves the image as it is: what standard training trains against."""
    del key, logits_fn, label, epsilon, step_size
    return image
