"""What losses are taken at: labels smoothed, mixed between images, weighted by class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad import stacking


class Labelling(NamedTuple):
    """How the labels of a batch are changed; by default not at all.

    Attributes:
      smoothing: share of the probability that all classes get alike (Szegedy et al., 2016), in [0, 1).
      mixup: alpha of mixup (Zhang et al., 2018): each image is mixed with another of its batch, by a share drawn from
        Beta(alpha, alpha), and so are their labels; 0 for none. Attacks lead away from the class of the larger share.
      class_weights: a factor of the loss for each class, of mean 1 if the loss is to keep its scale; None for 1.
    """

    smoothing: float = 0.0
    mixup: float = 0.0
    class_weights: tuple[float, ...] | None = None


def checked_labelling(labelling: Labelling) -> Labelling:
    """A labelling whose numbers can be meant.

    Raises:
      ValueError: for a smoothing outside [0, 1), a negative mixup, or weights that are negative or all 0.
    """
    if not 0 <= labelling.smoothing < 1:
        raise ValueError(f"expected a smoothing in [0, 1), got {labelling.smoothing}")
    if not 0 <= labelling.mixup < float("inf"):
        raise ValueError(f"expected a mixup of 0 or more, got {labelling.mixup}")
    weights = labelling.class_weights
    if weights is not None and not (all(0 <= one < float("inf") for one in weights) and any(weights)):
        raise ValueError(f"expected class weights of 0 or more, one above 0, got {weights}")
    return labelling


def labelled(
    labelling: Labelling, key: Array, images: Array, labels: Array, classes: int, weights: Array
) -> tuple[Array, Array, Array]:
    """Images, labels and factors of the losses of a batch.

    Args:
      labelling: what is wanted.
      key: of the step, the same on every device.
      images: this device's part, `[B, H, W, C]`.
      labels: its classes, `[B]`.
      classes: how many there are.
      weights: 1 for an example, 0 for padding, which is at the end of the last part.

    Returns:
      Images; classes `[B]`, or probabilities `[B, classes]` where they are smoothed or mixed; factors `[B]`.

    Raises:
      ValueError: as `checked_labelling`, and where there is not a weight for each class.
    """
    smoothing, mixup, factors = checked_labelling(labelling)
    each = jnp.ones(len(labels), images.dtype)
    if factors is not None:
        if len(factors) != classes:
            raise ValueError(f"expected a weight for each of {classes} classes, got {len(factors)}")
        each = jnp.asarray(factors, images.dtype)[labels]
    if not smoothing and not mixup:
        return images, labels, each
    soft = jax.nn.one_hot(labels, classes, dtype=images.dtype) * (1 - smoothing) + smoothing / classes
    if not mixup:
        return images, soft, each
    # The partner lies a random number of places further on in the whole batch, whichever devices hold the two.
    part_key, offset_key = jax.random.split(key)
    count = stacking.summed(weights.sum()).astype(jnp.int32)
    offset = jax.random.randint(offset_key, (), 1, jnp.maximum(count, 2))
    places = lax.axis_index(stacking.DATA) * len(labels) + jnp.arange(len(labels))
    keys = jax.vmap(lambda place: jax.random.fold_in(part_key, place))(places)
    share = jax.vmap(lambda key: jax.random.beta(key, mixup, mixup, dtype=images.dtype))(keys)
    partner = (places + offset) % jnp.maximum(count, 1)

    def mixed(own: Array) -> Array:
        whole = lax.all_gather(own, stacking.DATA, tiled=True)
        part = share.reshape(-1, *[1] * (own.ndim - 1))
        return part * own + (1 - part) * whole[partner]

    return mixed(images), mixed(soft), mixed(each)
