"""Losses of one example, `(logits [C], label) -> scalar`, shared by attacks, training and attributions.

`vmap` makes batches of them. An attack ascends a loss; a network descends it. The label of an attack may be a goal
`(label, target)`, two classes: then every loss in `LOSSES` is its targeted form, which rises towards the target.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.networks import predicted

Loss = Callable[[Array, Any], Array]


def succeeded(logits: Array, label: Any) -> Array:
    """Whether an attack has reached its goal: another class than the label, or the target of a goal `(label, target)`.

    Logits that are not finite are of no class: another than any label, and no target. What is neither a class nor a
    goal, for instance the probabilities that TRADES' attack is given, cannot be reached.
    """
    if isinstance(label, tuple):
        return predicted(logits) == label[1]
    return predicted(logits) != label if jnp.ndim(label) == 0 else jnp.array(False)


def cross_entropy(logits: Array, label: Any) -> Array:
    """Cross-entropy of the softmax, -log p_y, for logits `[C]` of any scale and an integer label.

    Computed as softplus(logsumexp_{j != y} z_j - z_y), which equals the textbook form but keeps the
    derivative exact where the network is certain: there softmax_y rounds to 1, so 1 - softmax_y, the
    share of the true logit in the gradient, is lost to cancellation in single precision.
    Of a goal `(y, t)` it is log p_t; of probabilities `[C]`, smoothed or mixed labels q, -sum_k q_k log p_k, NaN where
    one of them is negative or not a number.

    Raises:
      ValueError: if the label is of another shape, or no class.
    """
    if isinstance(label, tuple):
        return -cross_entropy(logits, label[1])
    kind = jnp.result_type(label)
    if jnp.ndim(label) and (jnp.shape(label) != logits.shape or not jnp.issubdtype(kind, jnp.floating)):
        raise ValueError(
            f"expected a class, or floating-point probabilities of shape {list(logits.shape)}, got labels of shape "
            f"{list(jnp.shape(label))} and {kind}"
        )
    if not jnp.ndim(label) and not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f"expected a class as an integer, got {kind}")
    if jnp.ndim(label):
        return -_expected(label, jax.nn.log_softmax(logits))
    others = jax.nn.logsumexp(_without(logits, label))
    return _of_class(logits, label) * jax.nn.softplus(others - logits[label])


def _expected(probabilities: Array, logs: Array) -> Array:
    """sum_k p_k log q_k, in which a class of probability 0 counts nothing, whatever its logarithm."""
    there = probabilities != 0
    terms = jnp.where(there, probabilities * jnp.where(there, logs, 0.0), 0.0)
    return jnp.sum(jnp.where(probabilities < 0, jnp.nan, terms))


def _of_class(logits: Array, *labels: Any) -> Array:
    """1 for labels that the logits have, NaN for others: an index beyond them would clamp or wrap in silence."""
    inside = [(jnp.asarray(label) >= 0) & (jnp.asarray(label) < logits.shape[-1]) for label in labels]
    return jnp.where(jnp.all(jnp.stack(inside)), 1.0, jnp.nan).astype(logits.dtype)


def cw_margin(logits: Array, label: Any, *, bound: float = jnp.inf, zero_mask: bool = False) -> Array:
    """Margin by which the network errs, max_{j != y} z_j - z_y; positive where it is wrong.

    The loss of Carlini and Wagner (2017). Where `bound` is finite it stops gaining there, as the paper
    has it for training at 500; unbounded, an attack goes on to the end of its ball.
    `zero_mask` is the paper's own margin: the true logit is set to 0 instead of left out, which differs
    where all other logits are negative. Of a goal `(y, t)` it is z_t - max_{j != t} z_j.
    """
    if isinstance(label, tuple):
        return jnp.minimum(-cw_margin(logits, label[1], zero_mask=zero_mask), bound)
    if jnp.ndim(label):
        raise ValueError(f"expected a class, got labels of shape {list(jnp.shape(label))}; a margin has no soft labels")
    others = logits.at[label].set(0.0) if zero_mask else _without(logits, label)
    return _of_class(logits, label) * jnp.minimum(jnp.max(others) - logits[label], bound)


def _without(logits: Array, label: Array) -> Array:
    return jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)


def kl_divergence(logits: Array, probabilities: Array) -> Array:
    """KL(p || softmax(logits)) for probabilities p `[C]`, the clean prediction's: what TRADES' attack ascends.

    Zhang et al. (2019), equation 5. It is zero, and so is its gradient, at the clean image itself.
    """
    if jnp.shape(probabilities) != logits.shape:
        raise ValueError(f"expected probabilities of shape {list(logits.shape)}, got {list(jnp.shape(probabilities))}")
    own = jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities))
    return own - _expected(probabilities, jax.nn.log_softmax(logits))


def dlr(logits: Array, label: Any) -> Array:
    """Difference of logits ratio, (max_{j != y} z_j - z_y) / (z_(1) - z_(3)), z_(k) the k-th largest.

    Croce and Hein (2020), equation 6: unlike the cross-entropy it does not change with the logits' scale or shift.
    Undefined below three classes, where `cw_margin` takes its place with a warning; and without one where fewer than
    three classes are not masked, of a logit of minus infinity. Of a goal it is `targeted_dlr`.
    """
    if isinstance(label, tuple):
        return targeted_dlr(logits, label)
    if logits.shape[-1] < 3:
        warnings.warn(undefined("dlr", 3, logits.shape[-1]), stacklevel=2)
        return cw_margin(logits, label)
    ordered = jnp.sort(logits)
    return cw_margin(logits, label) / _width(ordered[-1], ordered[-3])


def _width(highest: Array, lower: Array) -> Array:
    """What the ratio is taken to; 1 where the lower logit is of a class that is masked, minus infinity."""
    there = lower > -jnp.inf
    return jnp.where(there, highest - jnp.where(there, lower, 0.0) + 1e-12, 1.0)


def targeted_dlr(logits: Array, goal: tuple[Array, Array]) -> Array:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) for a goal `(y, t)`; Croce and Hein (2020), equation 7.

    Undefined below four classes, where `targeted_margin` takes its place with a warning; and without one where fewer
    are not masked.
    """
    if logits.shape[-1] < 4:
        warnings.warn(undefined("targeted_dlr", 4, logits.shape[-1]), stacklevel=2)
        return targeted_margin(logits, goal)
    ordered = jnp.sort(logits)
    return targeted_margin(logits, goal) / _width(ordered[-1], (ordered[-3] + ordered[-4]) / 2)


def undefined(loss: str, least: int, classes: int) -> str:
    """What is said of a loss that so few classes leave undefined."""
    return f"the loss {loss} is undefined for {classes} classes (it needs {least}): the margin stands in for it"


def targeted_margin(logits: Array, goal: tuple[Array, Array]) -> Array:
    """z_t - z_y for a goal `(y, t)`: positive where the target is above the label."""
    label, target = goal
    return _of_class(logits, label, target) * (logits[target] - logits[label])


# Classes below which a loss is undefined.
LEAST_CLASSES = {"dlr": 3}
LOSSES: dict[str, Loss] = {"xent": cross_entropy, "cw": cw_margin, "dlr": dlr}


def checked_loss(loss: Any) -> Loss:
    """A loss, if it is a function.

    Raises:
      ValueError: if it is not.
    """
    if not callable(loss):
        raise ValueError(f"expected a loss (logits, label) -> number, such as attacks.cross_entropy, got {loss!r}")
    return loss
