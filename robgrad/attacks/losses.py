"""Losses of one example, `(logits [C], label) -> scalar`, shared by attacks, training and attributions.

`vmap` makes batches of them. An attack ascends a loss; a network descends it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Loss = Callable[[Array, Any], Array]


def cross_entropy(logits: Array, label: Array) -> Array:
    """Cross-entropy of the softmax, -log p_y, for logits `[C]` of any scale and an integer label.

    Computed as softplus(logsumexp_{j != y} z_j - z_y), which equals the textbook form but keeps the
    derivative exact where the network is certain: there softmax_y rounds to 1, so 1 - softmax_y, the
    share of the true logit in the gradient, is lost to cancellation in single precision.
    """
    others = jax.nn.logsumexp(_without(logits, label))
    return jax.nn.softplus(others - logits[label])


def cw_margin(logits: Array, label: Array, *, bound: float = jnp.inf, zero_mask: bool = False) -> Array:
    """Margin by which the network errs, max_{j != y} z_j - z_y; positive where it is wrong.

    The loss of Carlini and Wagner (2017). Where `bound` is finite it stops gaining there, as the paper
    has it for training at 500; unbounded, an attack goes on to the end of its ball.
    `zero_mask` is the paper's own margin: the true logit is set to 0 instead of left out, which differs
    where all other logits are negative.
    """
    others = logits.at[label].set(0.0) if zero_mask else _without(logits, label)
    return jnp.minimum(jnp.max(others) - logits[label], bound)


def _without(logits: Array, label: Array) -> Array:
    return jnp.where(jnp.arange(logits.shape[-1]) == label, -jnp.inf, logits)


def kl_divergence(logits: Array, probabilities: Array) -> Array:
    """KL(p || softmax(logits)) for probabilities p `[C]`, the clean prediction's: what TRADES' attack ascends.

    Zhang et al. (2019), equation 5. It is zero, and so is its gradient, at the clean image itself.
    """
    logs = jax.nn.log_softmax(logits)
    return jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities) - probabilities * logs)


def dlr(logits: Array, label: Array) -> Array:
    """Difference of logits ratio, (max_{j != y} z_j - z_y) / (z_(1) - z_(3)), z_(k) the k-th largest.

    Croce and Hein (2020), equation 6: unlike the cross-entropy it does not change with the logits' scale or shift.
    Undefined below three classes.
    """
    ordered = jnp.sort(logits)
    return cw_margin(logits, label) / (ordered[-1] - ordered[-3] + 1e-12)


def targeted_dlr(logits: Array, goal: tuple[Array, Array]) -> Array:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) for a goal `(y, t)`; Croce and Hein (2020), equation 7.

    Undefined below four classes.
    """
    ordered = jnp.sort(logits)
    return targeted_margin(logits, goal) / (ordered[-1] - (ordered[-3] + ordered[-4]) / 2 + 1e-12)


def targeted_margin(logits: Array, goal: tuple[Array, Array]) -> Array:
    """z_t - z_y for a goal `(y, t)`: positive where the target is above the label."""
    label, target = goal
    return logits[target] - logits[label]


LOSSES: dict[str, Loss] = {"xent": cross_entropy, "cw": cw_margin, "dlr": dlr}
