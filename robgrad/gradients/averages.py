"""Attributions that average gradients or differences: along a path, over noise, over backgrounds, over windows.

Each function here builds an attribution `(key, logits_fn, image) -> [H, W]` from its numbers. What is explained
(`output`) and how channels become one value a pixel (`pixels`) are choices that all share. Memory holds `chunk`
gradients of one image at a time.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad.data.images import checked_example
from robgrad.gradients.attributions import Attribution
from robgrad.gradients.outputs import Output, Pixels, absolute, logit_of_prediction, loss_of_prediction, one_image
from robgrad.networks import LogitsFn

Rule = Literal["midpoint", "trapezoid", "gauss"]


def _mean(of: Callable[[Array], Array], count: int, chunk: int) -> Array:
    """The mean of `of(index)` over 0..count - 1, `chunk` at a time."""
    chunk = min(chunk, count)
    blocks = -(-count // chunk)

    def add(block: Array, total: Array) -> Array:
        places = block * chunk + jnp.arange(chunk)
        values = jax.vmap(of)(jnp.minimum(places, count - 1))
        inside = (places < count).reshape(-1, *[1] * (values.ndim - 1))
        return total + jnp.where(inside, values, 0.0).sum(0)

    shape = jax.eval_shape(of, jnp.int32(0))
    return lax.fori_loop(0, blocks, add, jnp.zeros(shape.shape, shape.dtype)) / count


def nodes(rule: Rule, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in [0, 1] and weights of a quadrature rule with so many evaluations.

    Raises:
      ValueError: if there are too few for the rule, or it is none.
    """
    if steps < (2 if rule == "trapezoid" else 1):
        raise ValueError(f"expected at least {2 if rule == 'trapezoid' else 1} steps for the rule {rule}, got {steps}")
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


def integrated_gradients(
    baseline: Array | float = 0.0,
    steps: int = 50,
    rule: Rule = "gauss",
    output: Output = logit_of_prediction,
    pixels: Pixels = absolute,
    chunk: int = 50,
) -> Attribution:
    """Integrated Gradients (Sundararajan, Taly and Yan, 2017).

    (x - b) times the integral over a in [0, 1] of the gradient at b + a (x - b), b the baseline: pixels' values sum to
    what explained output the image has beyond the baseline, see `completeness_error`.

    Args:
      baseline: an image, or a value for every pixel; 0 is grey, -1 black.
      steps: gradients on the way.
      rule: of quadrature.
      output: what is explained.
      pixels: how channels become one value.
      chunk: gradients at a time.
    """
    # Still NumPy's: an array of JAX made at import would start the backend before a program has set it up.
    places, weights = (values.astype(np.float32) for values in nodes(rule, steps))

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image = checked_example(logits_fn, image)
        explained, away = output(logits_fn, image), image - baseline

        def at(index: Array) -> Array:
            place, weight = jnp.asarray(places)[index], jnp.asarray(weights)[index]
            return steps * weight * jax.grad(explained)(baseline + place * away)

        return pixels(away * _mean(at, steps, chunk))

    return attribution


def completeness_error(
    values: Array,
    logits_fn: LogitsFn,
    image: Array,
    baseline: Array | float = 0.0,
    output: Output = logit_of_prediction,
) -> Array:
    """|sum of signed values - (f(x) - f(b))| / |f(x) - f(b)|, what integration or propagation has lost.

    Args:
      values: `[H, W]`, of an attribution with `pixels=signed`.
      logits_fn, image, baseline, output: as the attribution had them.
    """
    explained = output(logits_fn, image)
    gain = explained(image) - explained(jnp.broadcast_to(jnp.asarray(baseline, image.dtype), image.shape))
    return jnp.abs(values.sum() - gain) / jnp.abs(gain)


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
      background: images `[N, H, W, C]` in the network's range.
      samples: draws of baseline and place.
      noise: standard deviation of noise on the image, in pixel units; above zero it is GradientSHAP.
      output, pixels, chunk: as for `integrated_gradients`.
    """
    background = jnp.asarray(background, jnp.float32)

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        image = checked_example(logits_fn, image)
        explained = output(logits_fn, image)

        def at(index: Array) -> Array:
            pick, place, shake = jax.random.split(jax.random.fold_in(key, index), 3)
            base = background[jax.random.randint(pick, (), 0, len(background))]
            moved = image + noise * jax.random.normal(shake, image.shape)
            return (moved - base) * jax.grad(explained)(base + jax.random.uniform(place) * (moved - base))

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
      ValueError: if there is no such form.
    """
    if form not in ("mean", "square", "variance"):
        raise ValueError(f"expected a form of mean, square, variance, got '{form}'")

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        image = checked_example(logits_fn, image)
        explained = output(logits_fn, image)

        def at(index: Array) -> Array:
            shake = noise * jax.random.normal(jax.random.fold_in(key, index), image.shape)
            slope = jax.grad(explained)(image + shake)
            return jnp.stack([slope, slope**2])

        mean, square = _mean(at, samples, chunk)
        return pixels({"mean": mean, "square": square, "variance": square - mean**2}[form])

    return attribution


def sliding_occlusion(
    window: int = 3,
    stride: int = 1,
    fill: float = 0.0,
    output: Output = logit_of_prediction,
    pixels: Pixels = absolute,
    chunk: int = 50,
) -> Attribution:
    """Occlusion (Zeiler and Fergus, 2014): how much less output there is where a window hides a part of the image.

    A pixel's value is the mean over the windows that hide it of f(x) - f(x with the window filled).

    Args:
      window: side of the window.
      stride: its step; the last one ends at the image's edge.
      fill: value of hidden pixels.
      output: what is explained.
      pixels: of the difference, given as one channel.
      chunk: windows at a time.
    """

    def starts(size: int) -> Sequence[int]:
        return sorted({*range(0, size - window + 1, stride), size - window})

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image = checked_example(logits_fn, image)
        height, width, _ = one_image(image).shape
        if not 1 <= window <= min(height, width):
            raise ValueError(f"expected a window of 1 to {min(height, width)} pixels, got {window}")
        explained = output(logits_fn, image)
        corners = jnp.array([(top, left) for top in starts(height) for left in starts(width)])
        whole = explained(image)
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)

        def at(index: Array) -> Array:
            top, left = corners[index]
            hidden = (rows >= top) & (rows < top + window) & (columns >= left) & (columns < left + window)
            lost = whole - explained(jnp.where(hidden[..., None], fill, image))
            return jnp.stack([jnp.where(hidden, lost, 0.0), hidden.astype(jnp.float32)])

        lost, count = _mean(at, len(corners), chunk)
        return pixels((lost / count)[..., None])

    return attribution
