"""What an attribution explains, and how its values become one a pixel: choices that every attribution shares."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad.attacks import cross_entropy
from robgrad.data.calls import known
from robgrad.data.images import DataError
from robgrad.networks import LogitsFn, predicted

# `(logits_fn, image)` to the scalar function of an image that is explained.
Output = Callable[[LogitsFn, Array], Callable[[Array], Array]]
# `[H, W, C]` to `[H, W]`.
Pixels = Callable[[Array], Array]


def prediction(logits: Array) -> tuple[Array, Array]:
    """The class of the highest logit, and a factor for what is said of it: NaN where the logits predict no class."""
    label = predicted(logits)
    return jnp.maximum(label, 0), jnp.where(label < 0, jnp.nan, 1.0)


def _marked(value: Array, there: Array, image: Array) -> Array:
    """A value with its gradient, both NaN where the factor is: a network may hold the factor back by a condition."""
    return there * value + (there - there) * jnp.sum(image)


def loss_of_prediction(logits_fn: LogitsFn, image: Array) -> Callable[[Array], Array]:
    """The cross-entropy at the class that the network predicts for the image: the paper's."""
    label, there = prediction(logits_fn(image))
    return lambda x: _marked(cross_entropy(logits_fn(x), label), there, x)


def logit_of_prediction(logits_fn: LogitsFn, image: Array) -> Callable[[Array], Array]:
    """The logit of the class that the network predicts for the image: most other works'."""
    label, there = prediction(logits_fn(image))
    return lambda x: _marked(logits_fn(x)[label], there, x)


def probability_of_prediction(logits_fn: LogitsFn, image: Array) -> Callable[[Array], Array]:
    """The probability of the class that the network predicts for the image: LIME's."""
    label, there = prediction(logits_fn(image))
    return lambda x: _marked(kept_nan(jax.nn.softmax, logits_fn(x))[label], there, x)


def kept_nan(function: Callable[[Array], Array], logits: Array) -> Array:
    """A function of logits, NaN where one of them is: XLA on a CPU loses a network's constant NaN under `exp`."""
    return jnp.where(jnp.isnan(logits).any(), jnp.nan, function(logits))


def loss_of(label: Array | int) -> Output:
    """The cross-entropy at a given class, for instance the true one."""

    def of_logits(logits: Array) -> Array:
        return cross_entropy(logits, class_of(label, logits))

    return lambda logits_fn, image: lambda x: of_logits(logits_fn(x))


def logit_of(label: Array | int) -> Output:
    """The logit of a given class."""

    def explained(logits_fn: LogitsFn, image: Array) -> Callable[[Array], Array]:
        del image

        def of(x: Array) -> Array:
            logits = logits_fn(x)
            wanted = class_of(label, logits)
            there = jnp.where((wanted >= 0) & (wanted < logits.shape[-1]), 1.0, jnp.nan).astype(logits.dtype)
            return _marked(logits[wanted], there, x)

        return of

    return explained


def class_of(label: Array | int, logits: Array) -> Array:
    """A class as an array, if it is one and, where its value is known, one that the logits have.

    Raises:
      DataError: if it is not.
    """
    label = jnp.asarray(label)
    if label.ndim or not jnp.issubdtype(label.dtype, jnp.integer):
        raise DataError(f"expected one integer class, got {label.dtype} of shape {list(label.shape)}")
    value = known(label)
    if value is not None and not np.all((np.asarray(value) >= 0) & (np.asarray(value) < logits.shape[-1])):
        most = logits.shape[-1] - 1
        raise DataError(f"expected a class in 0..{most}, as many as the network has logits, got {value}")
    return label


def absolute(values: Array) -> Array:
    """Sum of absolute values over channels: how much a pixel matters, whichever way."""
    return jnp.abs(one_image(values)).sum(-1)


def signed(values: Array) -> Array:
    """Sum over channels: positive where a pixel speaks for what is explained."""
    return one_image(values).sum(-1)


def by_channel(values: Array) -> Array:
    """Each channel by itself, `[H, W, C]`: no sum, for measures that want a gradient's analogue."""
    return one_image(values)


def squared(values: Array) -> Array:
    """Sum of squares over channels."""
    return (one_image(values) ** 2).sum(-1)


def one_image(values: Array) -> Array:
    """What is given, if it is of one image `[H, W, C]`.

    Raises:
      DataError: if it is not.
    """
    if values.ndim != 3:
        raise DataError(f"expected one image [H, W, C], got {list(values.shape)}; map a batch by jax.vmap")
    return values
