"""Faithfulness without retraining: what a network's own output says when pixels go, come, or move.

Functions take one image, its map `[H, W]` and a network of one image; `jax.vmap` makes batches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.stats import rankdata

from robgrad.attacks import length
from robgrad.data.calls import checked_example, checked_map, known, mask_of, pixels_of
from robgrad.data.checks import checked_count, checked_positive
from robgrad.data.images import DataError
from robgrad.faithfulness.imputation import impute
from robgrad.gradients import Attribution, rank_map
from robgrad.gradients.outputs import Output, logit_of_prediction, one_image, prediction
from robgrad.networks import LogitsFn, predicted


def removed_of(ranks: Array, share: Array | float, least: bool = False) -> Array:
    """Which pixels are among a share of those ranked highest, or with `least` lowest; `[H, W]` bool.

    Raises:
      ValueError: if a share that is known is not in [0, 1], or, other than 0 and 1, rounds to no pixel or to all.
    """
    pixels = ranks.size
    if not isinstance(share, Array):
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share of pixels in [0, 1], got {share}")
        checked_share(share, pixels)
    ranks = pixels - 1 - ranks.astype(jnp.int32) if least else ranks.astype(jnp.int32)
    return ranks < jnp.round(share * pixels).astype(jnp.int32)


def checked_share(share: float, pixels: int) -> None:
    """Raises `ValueError` if a share of pixels between 0 and 1 rounds to none of them, or to all."""
    if 0 < share < 1 and round(share * pixels) in (0, pixels):
        raise ValueError(
            f"expected a share that removes some of {pixels} pixels and leaves some, got {share:g}, which rounds to "
            f"{round(share * pixels)}"
        )


def checked_shares(shares: Sequence[float]) -> list[float]:
    """Shares of pixels as numbers between 0 and 1, at least one.

    Raises:
      ValueError: if they are anything else.
    """
    values = np.asarray(shares, float)
    if values.ndim != 1 or not values.size or not np.all((values > 0) & (values < 1)):
        raise ValueError(f"expected a list of shares of pixels between 0 and 1, got {shares}")
    return values.tolist()


class Road(NamedTuple):
    """1 where the network is right, else 0, by share of pixels removed `[shares]`: the most relevant or the least."""

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
    label: Array | int,
    values: Array,
    shares: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
) -> Road:
    """Remove and debias (Rong et al., 2022): pixels are imputed from their neighbours, nothing is retrained.

    Of a map with NaN the results are NaN: it gives no order.

    Args:
      key: of ties and of the imputation's noise.
      logits_fn: the network.
      image: `[H, W, C]`.
      label: what is right.
      values: the attribution's map `[H, W]`.
      shares: of pixels removed, between 0 and 1.

    Raises:
      DataError: if image, label or map are not of that form.
      ValueError: if there are no shares, or one of them rounds to no pixel or to all.
    """
    image = one_image(checked_example(logits_fn, image, label))
    if label is None or jnp.ndim(label) or isinstance(label, tuple):
        raise DataError(f"expected the label of one image, an integer, got {'none' if label is None else label}")
    values = checked_map(values, image.shape[:2])
    for share in checked_shares(shares):
        checked_share(share, values.size)
    ties, noise = jax.random.split(key)
    ranks, undefined = rank_map(ties, values), jnp.isnan(values).any()

    def right(share: Array, least: bool) -> Array:
        filled = impute(image, removed_of(ranks, share, least), noise)
        return jnp.where(undefined, jnp.nan, predicted(logits_fn(filled)) == label)

    each = jnp.asarray(shares, image.dtype)
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
    where they alone are left, averaged over the share of pixels from 0 to 1 by the trapezoid rule. NaN of a map with
    NaN, and of a network that predicts no class of the image.

    Args:
      key: of ties.
      logits_fn: the network.
      image: `[H, W, C]`.
      values: the map `[H, W]`.
      fill: of absent pixels, a value, a colour `[C]` or an image.
      steps: shares of pixels beyond the first, at least 1.
    """
    image = checked_example(logits_fn, image)
    values, absent = checked_map(values, image.shape[:2]), pixels_of("fill", fill, image)
    checked_count("step", steps)
    ranks, (label, known) = rank_map(key, values), prediction(logits_fn(image))
    undefined = jnp.isnan(values).any() | jnp.isnan(known)

    def both(share: Array) -> Array:
        top = removed_of(ranks, share)[..., None]
        images = jnp.stack([jnp.where(top, absent, image), jnp.where(top, image, absent)])
        return jax.vmap(lambda x: jax.nn.softmax(logits_fn(x))[label])(images)

    curves = jax.lax.map(both, jnp.linspace(0, 1, steps + 1))
    return Game(*jnp.where(undefined, jnp.nan, jnp.trapezoid(curves, dx=1 / steps, axis=0)))


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
      values: a signed map, a gradient's analogue: `[H, W, C]`, or `[H, W]` for every channel. Of an attribution by
        its name it is `gradients.SIGNED`'s; absolute values promise nothing of this kind.
      noise: standard deviation of I, in pixel units.
      samples: draws.
      output: f.

    Raises:
      DataError: if image or map are not of that form.
    """
    image = checked_example(logits_fn, image)
    checked_positive("a standard deviation of noise", noise)
    explained, values = output(logits_fn, image), jnp.asarray(values)
    values = values if values.shape == image.shape else checked_map(values, image.shape[:2])[..., None]
    checked_count("sample", samples)
    # Of any scale: the squares of a certain network's gradient underflow.
    largest = jnp.max(jnp.abs(values))
    values = values / jnp.where(largest > 0, largest, 1.0)

    def one(key: Array) -> tuple[Array, Array]:
        moved = noise * jax.random.normal(key, image.shape, image.dtype)
        return jnp.sum(moved * values), explained(image) - explained(image - moved)

    promised, lost = jax.lax.map(one, jax.random.split(key, samples), batch_size=samples)
    square = jnp.mean(promised**2)
    scale = jnp.where(square == 0, 0.0, jnp.mean(promised * lost) / jnp.where(square == 0, 1.0, square))
    return jnp.mean((scale * promised - lost) ** 2)


def max_sensitivity(
    key: Array, logits_fn: LogitsFn, image: Array, attribution: Attribution, radius: float = 0.05, samples: int = 10
) -> Array:
    """Sensitivity (Yeh et al., 2019): the largest ||phi(x + d) - phi(x)|| / ||phi(x)||; lower is better.

    Pixels of d are uniform between -radius and radius. The attribution has the same key throughout, so that its own
    randomness does not count.
    """
    image = checked_example(logits_fn, image)
    own, rest = jax.random.split(key)
    images = jnp.concatenate([image[None], moved_images(rest, image, radius, samples)])
    # One call in a loop, so that the attribution is compiled once.
    maps = jax.lax.map(lambda one: attribution(own, logits_fn, one), images)
    return largest_change(maps[0], maps[1:])


def moved_images(key: Array, image: Array, radius: float = 0.05, samples: int = 10) -> Array:
    """An image `[H, W, C]` with uniform noise between -radius and radius on each pixel, `[samples, H, W, C]`.

    Raises:
      DataError: if the image is not floating point.
      ValueError: if the radius is not above 0.
    """
    checked_count("sample", samples)
    image = jnp.asarray(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise DataError(f"expected a floating-point image, got {image.dtype}; map bytes by data.scale")
    if known(radius) is not None:
        checked_positive("a radius in pixel units", radius)
    return image + jax.random.uniform(key, (samples, *image.shape), image.dtype, -radius, radius)


def largest_change(whole: Array, moved: Array) -> Array:
    """The largest ||phi' - phi|| / ||phi|| of a map `[H, W]` to maps `[samples, H, W]`; NaN where it is zero.

    Raises:
      DataError: if the maps are of other shapes, or there are none.
    """
    whole = checked_map(whole, jnp.shape(whole))
    moved = jnp.asarray(moved)
    if moved.ndim != whole.ndim + 1 or not len(moved):
        raise DataError(f"expected maps [samples, *{list(whole.shape)}], one or more, got shape {list(moved.shape)}")
    moved = checked_map(moved, (len(moved), *whole.shape))
    norm = length(whole)
    most = jax.vmap(lambda one: length(one - whole))(moved).max()
    return jnp.where(norm > 0, most / jnp.where(norm > 0, norm, 1.0), jnp.nan)


def rank_correlation(one: Array, two: Array) -> Array:
    """Spearman's correlation of two maps of one shape: Pearson's of their ranks, ties at their average rank.

    NaN where it is undefined: a map is constant, or holds NaN.

    Raises:
      DataError: if the shapes differ.
    """
    one, two = jnp.asarray(one), jnp.asarray(two)
    if one.shape != two.shape:
        raise DataError(f"expected two maps of one shape, got {list(one.shape)} and {list(two.shape)}")
    if not one.size:
        raise DataError("expected two maps of a pixel or more, got none")
    away = []
    for values in (jnp.ravel(one), jnp.ravel(two)):
        ranks = rankdata(values, "average")
        away.append(jnp.where(jnp.isnan(values).any(), jnp.nan, ranks - (values.size + 1) / 2))
    lengths = length(away[0]) * length(away[1])
    return jnp.where(lengths > 0, jnp.sum(away[0] * away[1]) / jnp.where(lengths > 0, lengths, 1.0), jnp.nan)


def randomisation(
    key: Array, logits_fn: LogitsFn, randomised: LogitsFn, image: Array, attribution: Attribution
) -> Array:
    """Parameter randomisation (Adebayo et al., 2018): the map's rank correlation with that of a randomised network.

    Near 0 for an attribution that depends on what the network has learnt; near 1 for one that does not, such as an edge
    map. NaN where either map is constant.
    """
    maps = [attribution(key, network, image) for network in (logits_fn, randomised)]
    return rank_correlation(*maps)


class Agreement(NamedTuple):
    """How a map agrees with a mask of what matters.

    Attributes:
      pointing: 1 where its largest value lies within, else 0 (the pointing game; Zhang et al., 2018).
      mass: share of its positive values' sum within (Arras, Osman and Samek, 2022).
      overlap: intersection over union with as many of its highest pixels as the mask has.
      chance: the mask's share of the pixels, what `pointing` and `mass` are for a map that knows nothing.
    """

    pointing: Array
    mass: Array
    overlap: Array
    chance: Array


def agreement(key: Array, values: Array, mask: Array) -> Agreement:
    """Agreement of a map `[H, W]` with a mask of that shape; ties by the key. NaN of a map with NaN, or of no mask.

    Args:
      key: of ties.
      values: the map; `[H, W, 1]` will do.
      mask: `[H, W]` or `[H, W, 1]`, of any type: a pixel matters where it is above a half, so that bool, 0 and 1, and
        bytes 0 and 255 say the same.

    Raises:
      DataError: if they are of other shapes.
    """
    values = checked_map(values, jnp.shape(values)[:2])
    mask = mask_of(mask, values.shape)
    ranks, area = rank_map(key, values).astype(jnp.int32), mask.sum()
    positive = jnp.maximum(values, 0.0)
    total = positive.sum()
    top = ranks < area
    pointing, mass, overlap = (
        jnp.any(mask & (ranks == 0)) * 1.0,
        jnp.where(total > 0, jnp.sum(positive * mask) / jnp.where(total > 0, total, 1.0), area / mask.size),
        jnp.sum(top & mask) / jnp.maximum(jnp.sum(top | mask), 1),
    )
    found = Agreement(pointing, mass, overlap, area / mask.size)
    known = ~jnp.isnan(values).any() & (area > 0)
    return jax.tree.map(lambda value: jnp.where(known, value, jnp.nan), found)._replace(chance=found.chance)
