"""Attributions that average gradients or differences: along a path, over noise, over backgrounds, over windows.

Each function here builds an attribution `(key, logits_fn, image) -> [H, W]` from its numbers. What is explained
(`output`) and how channels become one value a pixel (`pixels`) are choices that all share. Memory holds `chunk`
gradients of one image at a time.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad.data.calls import checked_example, known, pixels_of
from robgrad.data.checks import checked_count, checked_noise
from robgrad.data.images import DataError, scale
from robgrad.gradients.attributions import Attribution
from robgrad.gradients.outputs import Output, Pixels, absolute, logit_of_prediction, loss_of_prediction, one_image
from robgrad.networks import LogitsFn

Rule = Literal["midpoint", "trapezoid", "gauss"]


def _mean(of: Callable[[Array], Array], count: int, chunk: int) -> Array:
    """The mean of `of(index)` over 0..count - 1, `chunk` at a time."""
    checked_count("evaluation in a chunk", chunk)
    chunk = min(chunk, count)
    blocks = -(-count // chunk)

    def add(block: Array, total: Array) -> Array:
        places = block * chunk + jnp.arange(chunk)
        values = jax.vmap(of)(jnp.minimum(places, count - 1))
        inside = (places < count).reshape(-1, *[1] * (values.ndim - 1))
        return total + jnp.where(inside, values, 0.0).sum(0)

    shape = jax.eval_shape(of, jnp.int32(0))
    return lax.fori_loop(0, blocks, add, jnp.zeros(shape.shape, shape.dtype)) / count


def _variance(of: Callable[[Array], Array], count: int, chunk: int) -> Array:
    """The variance of `of(index)` over 0..count - 1, `chunk` at a time; never negative.

    Each chunk's squares are about its own mean, and chunks are joined by Chan, Golub and LeVeque's formula (1979): the
    mean of squares less the square of the mean cancels where values differ by little.
    """
    checked_count("evaluation in a chunk", chunk)
    chunk = min(chunk, count)

    def add(block: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, mean, squares = carry
        places = block * chunk + jnp.arange(chunk)
        values = jax.vmap(of)(jnp.minimum(places, count - 1))
        inside = (places < count).reshape(-1, *[1] * (values.ndim - 1))
        number = inside.sum().astype(values.dtype)
        own = jnp.where(inside, values, 0.0).sum(0) / number
        spread = jnp.where(inside, (values - own) ** 2, 0.0).sum(0)
        away, both = own - mean, total + number
        return both, mean + away * number / both, squares + spread + away**2 * total * number / both

    shape = jax.eval_shape(of, jnp.int32(0))
    zeros = jnp.zeros(shape.shape, shape.dtype)
    return lax.fori_loop(0, -(-count // chunk), add, (jnp.zeros((), shape.dtype), zeros, zeros))[2] / count


def quadrature(rule: Rule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in [0, 1] and weights of a quadrature rule with so many evaluations.

    Raises:
      ValueError: if there are too few for the rule, or it is none.
    """
    if steps < (2 if rule == "trapezoid" else 1):
        raise ValueError(f"expected at least {2 if rule == 'trapezoid' else 1} nodes for the rule {rule}, got {steps}")
    if rule == "midpoint":
        return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    if rule == "trapezoid":
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    if rule == "gauss":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return (1 + places) / 2, weights / 2
    raise ValueError(f"expected a rule of midpoint, trapezoid, gauss, got '{rule}'")


class Path(NamedTuple):
    """What integration along the path from a baseline to an image gives.

    Attributes:
      values: `[H, W, C]`, signed.
      error: what is left of completeness, |sum of values - gain| / |gain|, for the gain f(x) - f(b) of the output; NaN
        where the output gains nothing.
      nodes: gradients that were taken.
    """

    values: Array
    error: Array
    nodes: Array


def integrated(
    explained: Callable[[Array], Array],
    image: Array,
    base: Array,
    nodes: int = 50,
    tolerance: float = 0.01,
    most: int = 800,
    rule: Rule = "gauss",
    chunk: int = 50,
) -> Path:
    """(x - b) times the mean gradient of a function on the way from a baseline b to an image x, and what is left.

    The way is cut into parts with as many nodes in each; while more than `tolerance` of the gain is missing, there are
    twice as many parts. On the way the gradient of a network of ReLUs jumps, so that no rule is exact with few nodes.

    Args:
      explained: image to a number.
      image, base: `[H, W, C]`.
      nodes, tolerance, most, rule, chunk: as for `integrated_gradients`.
    """
    places, weights = (values.astype(image.dtype) for values in quadrature(rule, nodes))
    away, gain = image - base, explained(image) - explained(base)
    slope = jax.grad(explained)

    def refined(parts: Array) -> Array:
        def add(block: Array, total: Array) -> Array:
            index = block * size + jnp.arange(size)
            part, node = index // nodes, index % nodes
            at = (part + jnp.asarray(places)[node]) / parts
            share = jnp.where(index < parts * nodes, jnp.asarray(weights)[node] / parts, 0.0).astype(image.dtype)
            slopes = jax.vmap(lambda place: slope(base + place * away))(at.astype(image.dtype))
            return total + jnp.tensordot(share, slopes, axes=1)

        size = min(chunk, nodes)
        return away * lax.fori_loop(0, -(-parts * nodes // size), add, jnp.zeros_like(image))

    def missing(values: Array) -> Array:
        left = jnp.abs(jnp.sum(jnp.asarray(values)) - gain)
        return jnp.where(gain != 0, left / jnp.where(gain != 0, jnp.abs(gain), 1.0), jnp.nan)

    def unfinished(carry: tuple[Array, Array]) -> Array:
        parts, values = carry
        return (parts == 0) | ((missing(values) > tolerance) & (2 * parts * nodes <= most))

    def turn(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        parts = jnp.maximum(2 * carry[0], 1)
        return parts, refined(parts)

    # The first turn is in the loop, too: the gradient is compiled once.
    parts, values = lax.while_loop(unfinished, turn, (jnp.int32(0), jnp.zeros_like(image)))
    return Path(values, missing(values), parts * nodes)


def integrated_gradients(
    baseline: Array | float = 0.0,
    nodes: int = 50,
    rule: Rule = "gauss",
    output: Output = logit_of_prediction,
    pixels: Pixels = absolute,
    chunk: int = 50,
    *,
    tolerance: float = 0.01,
    most: int = 800,
) -> Attribution:
    """Integrated Gradients (Sundararajan, Taly and Yan, 2017).

    (x - b) times the integral over a in [0, 1] of the gradient at b + a (x - b), b the baseline: pixels' values sum to
    what explained output the image has beyond the baseline. `integrated` says how much of that is missing.

    Args:
      baseline: an image, a grey picture `[H, W]`, a colour `[C]` or a value for every pixel; 0 is grey, -1 black.
      nodes: gradients on the way, at least.
      rule: of quadrature.
      output: what is explained.
      pixels: how channels become one value.
      chunk: gradients at a time.
      tolerance: share of the output's gain that may be missing: until then nodes are doubled. Infinity takes `nodes`.
      most: gradients on the way, at most.

    Raises:
      ValueError: if there are too few nodes for the rule, or it is none.
    """
    quadrature(rule, nodes)
    checked_count("gradient in a chunk", chunk)

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image = one_image(checked_example(logits_fn, image))
        base = pixels_of("baseline", baseline, image)
        return pixels(integrated(output(logits_fn, image), image, base, nodes, tolerance, most, rule, chunk).values)

    return attribution


def completeness_error(
    values: Array,
    logits_fn: LogitsFn,
    image: Array,
    baseline: Array | float = 0.0,
    output: Output = logit_of_prediction,
) -> Array:
    """|sum of signed values - (f(x) - f(b))| / |f(x) - f(b)|, what integration or propagation has lost.

    NaN where the output gains nothing.

    Args:
      values: `[H, W]`, of an attribution with `pixels=signed`.
      logits_fn, image, baseline, output: as the attribution had them.
    """
    image = checked_example(logits_fn, image)
    explained = output(logits_fn, image)
    gain = explained(image) - explained(pixels_of("baseline", baseline, image))
    return jnp.where(
        gain != 0, jnp.abs(jnp.sum(jnp.asarray(values)) - gain) / jnp.where(gain != 0, jnp.abs(gain), 1.0), jnp.nan
    )


def expected_gradients(
    background: Array,
    samples: int = 50,
    noise: float = 0.0,
    output: Output = logit_of_prediction,
    pixels: Pixels = absolute,
    chunk: int = 50,
) -> Attribution:
    """Expected Gradients (Erion et al., 2021): Integrated Gradients averaged over baselines drawn from the data.

    The mean of (x - b) times the gradient at b + a (x - b), b an image of the background and a uniform in [0, 1].

    Args:
      background: images `[N, H, W, C]` in the network's range, or bytes, which are mapped to [-1, 1].
      samples: draws of baseline and place.
      noise: standard deviation of noise on the image, in pixel units; above zero it is GradientSHAP.
      output, pixels, chunk: as for `integrated_gradients`.
    """
    background = scale(jnp.asarray(background))
    if known(background) is not None and not bool(jnp.all(jnp.isfinite(background))):
        raise DataError("expected a background of finite pixels, got NaN or infinity")
    checked_count("sample", samples)
    noise = checked_noise(noise)

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        image = one_image(checked_example(logits_fn, image))
        explained = output(logits_fn, image)
        if background.shape[1:] != image.shape or not len(background):
            wanted = ", ".join(map(str, ("N", *image.shape)))
            raise DataError(f"expected a background of images [{wanted}], got shape {list(background.shape)}")

        def at(index: Array) -> Array:
            pick, place, shake = jax.random.split(jax.random.fold_in(key, index), 3)
            base = background[jax.random.randint(pick, (), 0, len(background))].astype(image.dtype)
            moved = image + noise * jax.random.normal(shake, image.shape, image.dtype)
            share = jax.random.uniform(place, dtype=image.dtype)
            return (moved - base) * jax.grad(explained)(base + share * (moved - base))

        return pixels(_mean(at, samples, chunk))

    return attribution


def gradient_shap(background: Array, samples: int = 50, noise: float = 0.1, **options) -> Attribution:
    """GradientSHAP (Lundberg and Lee, 2017, as their package has it): Expected Gradients of a noised image."""
    return expected_gradients(background, samples, noise, **options)


def smoothgrad(
    samples: int = 50,
    noise: float = 0.3,
    form: Literal["mean", "square", "variance"] = "mean",
    output: Output = loss_of_prediction,
    pixels: Pixels = absolute,
    chunk: int = 50,
) -> Attribution:
    """SmoothGrad (Smilkov et al., 2017): the mean of gradients at noised images; of their squares; their variance.

    Args:
      samples: noised images.
      noise: standard deviation in pixel units; the paper has 10 to 20% of the range, 0.2 to 0.4 here.
      form: `mean`; `square`, the mean of squares (Hooker et al., 2019); `variance` (Adebayo et al., 2018).
      output, pixels, chunk: as for `integrated_gradients`.

    Raises:
      ValueError: if there is no such form, no samples, or the noise is negative or not finite.
    """
    noise = checked_noise(noise)
    if form not in ("mean", "square", "variance"):
        raise ValueError(f"expected a form of mean, square, variance, got '{form}'")

    checked_count("sample", samples)

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        image = checked_example(logits_fn, image)
        explained = output(logits_fn, image)

        def slope(index: Array) -> Array:
            shake = noise * jax.random.normal(jax.random.fold_in(key, index), image.shape, image.dtype)
            return jax.grad(explained)(image + shake)

        if form == "variance":
            return pixels(_variance(slope, samples, chunk))
        return pixels(_mean(slope if form == "mean" else lambda index: slope(index) ** 2, samples, chunk))

    return attribution


def sliding_occlusion(
    window: int = 3,
    stride: int = 1,
    fill: Array | float = 0.0,
    output: Output = logit_of_prediction,
    pixels: Pixels = absolute,
    chunk: int = 50,
) -> Attribution:
    """Occlusion (Zeiler and Fergus, 2014): how much less output there is where a window hides a part of the image.

    A pixel's value is the mean over the windows that hide it of f(x) - f(x with the window filled).

    Args:
      window: side of the window.
      stride: its step; the last one ends at the image's edge.
      fill: of hidden pixels, a value, a colour `[C]` or an image.
      output: what is explained.
      pixels: of the difference, given as one channel.
      chunk: windows at a time.
    """

    checked_count("pixel of a window", window)
    checked_count("pixel of a stride", stride)
    if not 1 <= stride <= window:
        raise ValueError(f"expected a stride of 1 to {window} pixels, the window's side, got {stride}")

    def starts(size: int) -> Sequence[int]:
        return sorted({*range(0, size - window + 1, stride), size - window})

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image = checked_example(logits_fn, image)
        height, width, _ = one_image(image).shape
        if not 1 <= window <= min(height, width):
            raise ValueError(f"expected a window of 1 to {min(height, width)} pixels, got {window}")
        explained, filled = output(logits_fn, image), pixels_of("fill", fill, image)
        corners = jnp.array([(top, left) for top in starts(height) for left in starts(width)])
        whole = explained(image)
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)

        def at(index: Array) -> Array:
            top, left = corners[index]
            hidden = (rows >= top) & (rows < top + window) & (columns >= left) & (columns < left + window)
            lost = whole - explained(jnp.where(hidden[..., None], filled, image))
            return jnp.stack([jnp.where(hidden, lost, 0.0), hidden.astype(lost.dtype)])

        lost, count = _mean(at, len(corners), chunk)
        return pixels((lost / count)[..., None])

    return attribution
