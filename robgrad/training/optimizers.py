"""Optimizers and schedules of training by name, of Optax's parts, with numbers that may differ over a stack.

The learning rate and the weight decay are numbers of the step (`objectives.StepSizes`), one for each network of a
stack, so that a sweep over them is one compiled program; what shapes the optimizer, such as its momentum or its
schedule, is chosen when it is built. To add an optimizer or a schedule is to name it in `OPTIMIZERS` or `SCHEDULES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

LEARNING_RATE = 1e-3


@dataclass(frozen=True, eq=False)
class Optimizer:
    """An optimizer that takes the learning rate and the weight decay with each update.

    Attributes:
      init: parameters to its state.
      update: `(gradients, state, params, learning_rate=, weight_decay=)` to updates, which are added, and its state.
      steps: for how many steps its schedule is made; None for any number.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    steps: int | None = None


def _scaled(number: str, negative: bool = False) -> optax.GradientTransformationExtraArgs:
    """Multiplies updates by a number that comes with them."""

    def update(updates, state, params=None, **numbers):
        rate = -numbers[number] if negative else numbers[number]
        return jax.tree.map(lambda one: rate * one, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _decayed() -> optax.GradientTransformationExtraArgs:
    """Adds the parameters, times the weight decay that comes with the update."""

    def update(updates, state, params=None, *, weight_decay, **_):
        return _with_decay(updates, params, weight_decay), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _with_decay(updates: Any, params: Any, weight_decay: Any) -> Any:
    if weight_decay is None:
        return updates
    return jax.tree.map(lambda one, param: one + weight_decay * param, updates, params)


# What each does with gradients and decay; the learning rate comes after. Adam's and SGD's decay is part of the
# gradient, as in PyTorch; that of AdamW and Lion is not scaled by their moments (Loshchilov and Hutter, 2019).
OPTIMIZERS: dict[str, Callable[[float], list[optax.GradientTransformation]]] = {
    "adam": lambda momentum: [_decayed(), optax.scale_by_adam(momentum)],
    "adamw": lambda momentum: [optax.scale_by_adam(momentum), _decayed()],
    "sgd": lambda momentum: [_decayed(), optax.trace(momentum) if momentum else optax.identity()],
    "sgd-nesterov": lambda momentum: [_decayed(), optax.trace(momentum, nesterov=True)],
    "lion": lambda momentum: [optax.scale_by_lion(momentum), _decayed()],
}
# Multiples of the learning rate over so many steps.
SCHEDULES: dict[str, Callable[[int], optax.Schedule]] = {
    "constant": lambda steps: optax.constant_schedule(1.0),
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "cosine": partial(optax.cosine_decay_schedule, 1.0),
    # A tenth from half of the steps on, and again from three quarters (Rice et al., 2020).
    "piecewise": lambda steps: optax.piecewise_constant_schedule(1.0, {steps // 2: 0.1, steps * 3 // 4: 0.1}),
    "one-cycle": lambda steps: optax.cosine_onecycle_schedule(steps, 1.0),
}


def plain_adam(b1: float = 0.9, b2: float = 0.999) -> Optimizer:
    """Adam (Kingma and Ba, 2015) at a constant learning rate: what steps take where no optimizer is given.

    The same as `optimizer_named("adam")`, with the state of `optax.scale_by_adam` alone.
    """
    directions = optax.scale_by_adam(b1, b2)

    def update(gradients, state, params=None, *, learning_rate, weight_decay=None):
        found, state = directions.update(_with_decay(gradients, params, weight_decay), state, params)
        return jax.tree.map(lambda one: -learning_rate * one, found), state

    return Optimizer(directions.init, update)


def optimizer_named(
    name: str,
    *,
    schedule: str = "constant",
    steps: int | None = None,
    momentum: float = 0.9,
    clip: float | None = None,
) -> Optimizer:
    """Builds an optimizer: clip the gradient, decay, direction, schedule times learning rate.

    Args:
      name: of `OPTIMIZERS`.
      schedule: of `SCHEDULES`, multiples of the learning rate: of a run of so many steps.
      steps: of the whole run, which a schedule other than `constant` needs; `training.fit` refuses a longer one.
      momentum: of SGD; of the others the decay of their first moment.
      clip: greatest l2 norm of the gradient of all parameters together; None for any.

    Returns:
      What `training.classifier_step` takes as `optimizer`, the learning rate and weight decay being the step's numbers.

    Raises:
      ValueError: for a name that is none, a schedule without steps, a momentum outside [0, 1) or a clip of 0 or below.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"expected an optimizer of {', '.join(OPTIMIZERS)}, got '{name}'")
    if schedule not in SCHEDULES:
        raise ValueError(f"expected a schedule of {', '.join(SCHEDULES)}, got '{schedule}'")
    if schedule != "constant" and (steps is None or int(steps) != steps or steps < 1):
        raise ValueError(f"expected steps=, the steps of the whole run, for the schedule '{schedule}', got {steps}")
    if not 0 <= momentum < 1:
        raise ValueError(f"expected a momentum in [0, 1), got {momentum}")
    if clip is not None and not (np.isfinite(clip) and clip > 0):
        raise ValueError(f"expected a clip above 0, the greatest norm of a gradient, got {clip}")
    parts = [optax.clip_by_global_norm(clip)] if clip is not None else []
    parts += OPTIMIZERS[name](momentum)
    if schedule != "constant":
        parts.append(optax.scale_by_schedule(SCHEDULES[schedule](int(steps or 1))))
    whole = optax.chain(*parts, _scaled("learning_rate", negative=True))
    return Optimizer(whole.init, whole.update, None if schedule == "constant" else int(steps or 1))


def updated(
    optimizer: Optimizer | optax.GradientTransformation,
    gradients: Any,
    state: Any,
    params: Any,
    *,
    learning_rate: Array | float | None = None,
    weight_decay: Array | float | None = None,
    loss: Array | None = None,
) -> tuple[Any, Any]:
    """Parameters and optimizer state after one update.

    Args:
      optimizer: one of this module's, or any of Optax's, whose learning rate and decay are its own: fixed, or, made by
        `optax.inject_hyperparams`, arrays in its state, which may differ over a stack.
      gradients: of the loss.
      state: of the optimizer.
      params: before the update.
      learning_rate: of this module's optimizers, 1e-3 where None.
      weight_decay: of this module's optimizers, 0 where None.
      loss: for Optax's parts that look at it, such as `optax.contrib.reduce_on_plateau`.

    Raises:
      ValueError: if an optimizer of Optax's is given a learning rate or a decay, which it would not see.
    """
    if isinstance(optimizer, Optimizer):
        rates = {
            "learning_rate": LEARNING_RATE if learning_rate is None else learning_rate,
            "weight_decay": weight_decay,
        }
        updates, state = optimizer.update(gradients, state, params, **rates)
    else:
        for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if value is not None:
                raise ValueError(
                    f"{name}: expected none among the step's numbers, since the optimizer of Optax has its own; leave "
                    f"it out, or build the optimizer by training.optimizer_named"
                )
        more = {} if loss is None else {"value": loss}
        updates, state = optax.with_extra_args_support(optimizer).update(gradients, state, params, **more)
    return jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates), state


def checked_rates(learning_rate: Any, weight_decay: Any) -> None:
    """That learning rates and weight decays are finite and not negative.

    Raises:
      ValueError: if not.
    """
    _check_all((("learning rate", learning_rate), ("weight decay", weight_decay)))


def checked_sizes(epsilon: Any, step_size: Any, weight: Any) -> None:
    """That radii, steps and weights of objectives are finite and not negative.

    Raises:
      ValueError: if not.
    """
    _check_all((("radius (epsilon)", epsilon), ("step size", step_size), ("weight of the objective", weight)))


def _check_all(named: Sequence[tuple[str, Any]]) -> None:
    for name, value in named:
        numbers = np.asarray(0.0 if value is None else value)
        if not jnp.issubdtype(numbers.dtype, np.number) or not np.all(np.isfinite(numbers) & (numbers >= 0)):
            raise ValueError(f"expected a {name} of 0 or more, finite, got {value}")
