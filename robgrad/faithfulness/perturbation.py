"""Faithfulness without retraining: what a network's own output says when pixels go, come, or move.

Functions take one image, its map `[H, W]` and a network of one image; `jax.vmap` makes batches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.attacks import length
from robgrad.faithfulness.imputation import impute
from robgrad.gradients import Attribution, rank_map
from robgrad.gradients.outputs import Output, logit_of_prediction
from robgrad.networks import LogitsFn


def removed_of(ranks: Array, share: Array | float, least: bool = False) -> Array:
    """Which pixels are among a share of those ranked highest, or with `least` lowest; `[H, W]` bool."""
    pixels = ranks.size
    ranks = pixels - 1 - ranks.astype(jnp.int32) if least else ranks.astype(jnp.int32)
    return ranks < jnp.round(share * pixels).astype(jnp.int32)


class Road(NamedTuple):
    """Whether the network is right, by share of pixels removed `[shares]`: the most relevant first, or the least."""

    most: Array
    least: Array

    @property
    def score(self) -> Array:
        """Mean over shares of right with the least relevant removed less that with the most: higher is better."""
        return jnp.mean(self.least * 1.0 - self.most * 1.0, axis=-1)


def road(
    key: Array,
    logits_fn: LogitsFn,
    image: Array,
    label: Array,
    values: Array,
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
) -> Road:
    """Remove and debias (Rong et al., 2022): pixels are imputed from their neighbours, nothing is retrained.

    Args:
      key: of ties and of the imputation's noise.
      logits_fn: the network.
      image: `[H, W, C]`.
      label: what is right.
      values: the attribution's map `[H, W]`.
      shares: of pixels removed.
    """
    ties, noise = jax.random.split(key)
    ranks = rank_map(ties, values)

    def right(share: Array, least: bool) -> Array:
        filled = impute(image, removed_of(ranks, share, least), noise)
        return jnp.argmax(logits_fn(filled)) == label

    each = jnp.asarray(shares, jnp.float32)
    return Road(*(jax.lax.map(lambda share, at=least: right(share, at), each) for least in (False, True)))


class Game(NamedTuple):
    """Areas under the predicted class's probability as pixels are deleted (lower is better) or inserted (higher)."""

    deletion: Array
    insertion: Array


def deletion_and_insertion(
    key: Array, logits_fn: LogitsFn, image: Array, values: Array, fill: Array | float = 0.0, steps: int = 20
) -> Game:
    """Deletion and insertion (Petsiuk, Das and Saenko, 2018) of pixels in the order of a map.

    The probability of the class predicted for the image, where the pixels of highest value have become the fill, or
    where they alone are left, averaged over the share of pixels from 0 to 1 by the trapezoid rule.

    Args:
      key: of ties.
      logits_fn: the network.
      image: `[H, W, C]`.
      values: the map `[H, W]`.
      fill: of absent pixels, a value or an image.
      steps: shares of pixels beyond the first.
    """
    ranks, predicted = rank_map(key, values), jnp.argmax(logits_fn(image))

    def both(share: Array) -> Array:
        top = removed_of(ranks, share)[..., None]
        images = jnp.stack([jnp.where(top, fill, image), jnp.where(top, image, fill)])
        return jax.vmap(lambda x: jax.nn.softmax(logits_fn(x))[predicted])(images)

    curves = jax.lax.map(both, jnp.linspace(0, 1, steps + 1))
    return Game(*jnp.trapezoid(curves, dx=1 / steps, axis=0))


def infidelity(
    key: Array,
    logits_fn: LogitsFn,
    image: Array,
    values: Array,
    *,
    noise: float = 0.2,
    samples: int = 50,
    output: Output = logit_of_prediction,
) -> Array:
    """Infidelity (Yeh et al., 2019): E (I . phi - (f(x) - f(x - I)))^2 for Gaussian I; lower is better.

    The map is scaled by the one number that makes it least, as they do, so that maps of other units can be compared.

    Args:
      key: of the noise.
      logits_fn: the network.
      image: `[H, W, C]`.
      values: a signed map, a gradient's analogue: `[H, W, C]`, or `[H, W]` for every channel.
      noise: standard deviation of I, in pixel units.
      samples: draws.
      output: f.
    """
    explained = output(logits_fn, image)
    values = values if values.ndim == image.ndim else values[..., None]

    def one(key: Array) -> tuple[Array, Array]:
        moved = noise * jax.random.normal(key, image.shape)
        return jnp.sum(moved * values), explained(image) - explained(image - moved)

    promised, lost = jax.lax.map(one, jax.random.split(key, samples), batch_size=samples)
    square = jnp.mean(promised**2)
    scale = jnp.where(square > 0, jnp.mean(promised * lost) / jnp.where(square > 0, square, 1.0), 0.0)
    return jnp.mean((scale * promised - lost) ** 2)


def max_sensitivity(
    key: Array, logits_fn: LogitsFn, image: Array, attribution: Attribution, radius: float = 0.05, samples: int = 10
) -> Array:
    """Sensitivity (Yeh et al., 2019): the largest ||phi(x + d) - phi(x)|| / ||phi(x)||; lower is better.

    Pixels of d are uniform between -radius and radius. The attribution has the same key throughout, so that its own
    randomness does not count.
    """
    own, rest = jax.random.split(key)
    whole = attribution(own, logits_fn, image)

    def one(key: Array) -> Array:
        moved = image + jax.random.uniform(key, image.shape, minval=-radius, maxval=radius)
        return length(attribution(own, logits_fn, moved) - whole)

    norm = length(whole)
    most = jax.lax.map(one, jax.random.split(rest, samples)).max()
    return jnp.where(norm > 0, most / jnp.where(norm > 0, norm, 1.0), jnp.nan)


def rank_correlation(one: Array, two: Array) -> Array:
    """Spearman's correlation of two maps `[H, W]`; ties in the order of pixels."""
    ranks = [jnp.argsort(jnp.argsort(jnp.ravel(values))).astype(jnp.float32) for values in (one, two)]
    away = [values - values.mean() for values in ranks]
    return jnp.sum(away[0] * away[1]) / (length(away[0]) * length(away[1]))


def randomisation(
    key: Array, logits_fn: LogitsFn, randomised: LogitsFn, image: Array, attribution: Attribution
) -> Array:
    """Parameter randomisation (Adebayo et al., 2018): the map's rank correlation with that of a randomised network.

    Near 0 for an attribution that depends on what the network has learnt; near 1 for one that does not, such as an edge
    map.
    """
    maps = [attribution(key, network, image) for network in (logits_fn, randomised)]
    return rank_correlation(*maps)


class Agreement(NamedTuple):
    """How a map agrees with a mask of what matters.

    Attributes:
      pointing: whether its largest value lies within (the pointing game; Zhang et al., 2018).
      mass: share of its positive values' sum within (Arras, Osman and Samek, 2022).
      overlap: intersection over union with as many of its highest pixels as the mask has.
      chance: the mask's share of the pixels, what `pointing` and `mass` are for a map that knows nothing.
    """

    pointing: Array
    mass: Array
    overlap: Array
    chance: Array


def agreement(key: Array, values: Array, mask: Array) -> Agreement:
    """Agreement of a map `[H, W]` with a mask `[H, W]`; ties by the key."""
    ranks, area = rank_map(key, values).astype(jnp.int32), mask.sum()
    positive = jnp.maximum(values, 0.0)
    total = positive.sum()
    top = ranks < area
    return Agreement(
        jnp.sum(jnp.where(ranks == 0, mask, False)) > 0,
        jnp.where(total > 0, jnp.sum(positive * mask) / jnp.where(total > 0, total, 1.0), area / mask.size),
        jnp.sum(top & mask) / jnp.maximum(jnp.sum(top | mask), 1),
        area / mask.size,
    )
