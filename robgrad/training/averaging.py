"""Which of a training's states is kept: an average of its weights over steps, or the best of its epochs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad import stacking
from robgrad.data.checks import checked_count
from robgrad.training.state import TrainState


class Averaging(NamedTuple):
    """An average of the variables after each step, from a step on.

    The k-th state averaged has the weight max(1 - decay, 1 / k) in the average so far: with `decay` 1 the plain mean
    (stochastic weight averaging, Izmailov et al., 2018), below 1 an exponential average that starts as a mean.

    Attributes:
      decay: in [0, 1].
      start: steps before the first state that counts.
    """

    decay: float = 0.999
    start: int = 0

    def checked(self) -> "Averaging":
        """Itself.

        Raises:
          ValueError: if the decay is not in [0, 1], or the start negative.
        """
        if not 0 <= self.decay <= 1 or self.start < 0:
            raise ValueError(f"expected a decay in [0, 1] and a start of 0 or more, got {self.decay} and {self.start}")
        return self


def averaged(averaging: Averaging | None, state: TrainState) -> Any:
    """The average after a step has been taken; None without averaging. What is no floating point is the state's own."""
    if averaging is None:
        return state.average
    averaging.checked()
    if state.average is None:
        raise ValueError("expected a state with an average: give training.with_average(states) to `fit`")
    taken = jnp.maximum(state.step - averaging.start, 1)
    weight = jnp.maximum(1 - averaging.decay, 1 / taken)

    def moved(average: Array, now: Array) -> Array:
        if not jnp.issubdtype(now.dtype, jnp.floating):
            return now
        return (average + weight * (now - average)).astype(now.dtype)

    return jax.tree.map(moved, state.average, state.variables)


def with_average(states: TrainState) -> TrainState:
    """States, one or a stack, that keep an average of their variables, which begins with those they have."""
    return states._replace(average=jax.tree.map(jnp.copy, states.variables))


class Best(NamedTuple):
    """The variables at the epoch of the best score, of each network of a stack.

    Attributes:
      variables: those, or their average where one is kept.
      score: the best, minus infinity before the first; a later one must be better to take its place.
      epoch: after which it was, from 1.
      curve: the scores after each epoch, `[S, epochs]`; NaN where none is yet.
    """

    variables: Any
    score: Array
    epoch: Array
    curve: Array


def with_best(states: TrainState, epochs: int) -> TrainState:
    """A stack of states that keeps its best epoch, of a training of so many; `fit` is to be given `score`."""
    checked_count("epoch", epochs)
    count = stacking.size(states.variables)
    shown = states.variables if states.average is None else states.average
    curve = jnp.full((count, epochs), jnp.nan)
    nothing = jnp.full(count, -jnp.inf), jnp.zeros(count, jnp.int32)
    return states._replace(best=Best(jax.tree.map(jnp.copy, shown), *nothing, curve))


def judged(states: TrainState, scores: np.ndarray, epoch: int) -> TrainState:
    """A stack of states after an epoch with these scores `[S]`.

    Raises:
      ValueError: if there is not a finite score for each network.
    """
    best: Best = states.best
    given = np.asarray(scores)
    if given.shape != best.score.shape or given.dtype == object or not np.isfinite(given).all():
        raise ValueError(f"expected a finite score for each of {len(best.score)} networks, got {scores}")
    found = jnp.asarray(given, best.score.dtype)
    better = found > best.score
    shown = states.variables if states.average is None else states.average

    def chosen(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    variables = jax.tree.map(chosen, shown, best.variables)
    curve = best.curve.at[:, epoch - 1].set(found)
    return states._replace(best=Best(variables, chosen(found, best.score), jnp.where(better, epoch, best.epoch), curve))


def kept(states: TrainState, keep: str = "last") -> Any:
    """The variables that a training ends with: `last`, those of the last step or their average; `best`, see `Best`.

    Raises:
      ValueError: if the best is asked for and none was kept, or for another word.
    """
    if keep not in ("last", "best"):
        raise ValueError(f"expected last or best, got '{keep}'")
    if keep == "best":
        if states.best is None:
            raise ValueError(
                "expected states that keep their best epoch: give training.with_best(states, epochs) to `fit`"
            )
        return states.best.variables
    return states.variables if states.average is None else states.average
