"""Attributions of one image: which of its pixels a network's decision rests on, one value a pixel.

An attribution is `(key, logits_fn, image) -> values`, `[H, W, C]` to `[H, W]`; `jax.vmap` makes batches. To
add one is to write such a function and, for the experiments' flags, to name it in `named.ATTRIBUTIONS`.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.attacks import Loss, cross_entropy
from robgrad.data.calls import checked_example
from robgrad.data.checks import checked_count, checked_noise
from robgrad.data.images import float_type
from robgrad.gradients.outputs import Output, Pixels, absolute, loss_of_prediction, one_image, prediction
from robgrad.manifolds import Manifold
from robgrad.networks import LogitsFn

Attribution = Callable[[Array, LogitsFn, Array], Array]


def loss_gradient(logits_fn: LogitsFn, image: Array, label: Array | None = None, loss: Loss = cross_entropy) -> Array:
    """Gradient of the loss by one image; at the network's own prediction where no label is given."""
    image = checked_example(logits_fn, image, label)
    known: Array | float = 1.0
    if label is None:
        label, known = prediction(logits_fn(image))
    return known * jax.grad(lambda x: loss(logits_fn(x), label))(image)


def gradient(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
    """|dL/dx| of the cross-entropy at the predicted label, summed over channels (Simonyan et al., 2014)."""
    del key
    return absolute(loss_gradient(logits_fn, image))


def gradient_times_input(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
    """|x * dL/dx| of the cross-entropy at the predicted label, summed over channels; x in [-1, 1]."""
    del key
    return absolute(jnp.asarray(image) * loss_gradient(logits_fn, image))


def of_gradient(
    output: Output = loss_of_prediction, pixels: Pixels = absolute, times_input: bool = False, origin: float = 0.0
) -> Attribution:
    """Gradient or Gradient * Input with other choices than the paper's.

    Args:
      output: what is differentiated.
      pixels: how channels become one value.
      times_input: multiply by x - origin.
      origin: of the pixel scale; 0 is the middle of [-1, 1], the paper's, and -1 makes of it what works with pixels in
        [0, 1] have: black pixels get nothing. The two rank pixels very differently.
    """

    def attribution(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        del key
        image = checked_example(logits_fn, image)
        slope = jax.grad(output(logits_fn, image))(image)
        return pixels((image - origin) * slope if times_input else slope)

    return attribution


def random(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
    """Uniform noise: a ranking of the pixels at random, the baseline that spends the same budget on every image."""
    return jax.random.uniform(key, one_image(checked_example(logits_fn, image)).shape[:-1])


def gradient_random_projection(
    key: Array, logits_fn: LogitsFn, image: Array, directions: int = 10, pixels: Pixels = absolute
) -> Array:
    """A control for attributions projected on a manifold: the gradient's part along random directions.

    |P dL/dx| summed over channels, P = G G^T / directions for a Gaussian G `[pixels, directions]` drawn from the
    key: as few dimensions as a manifold has, and no knowledge of the data.
    """
    checked_count("direction", directions)
    image = checked_example(logits_fn, image)
    random_directions = jax.random.normal(key, (directions, image.size), float_type(image.dtype))
    projected = random_directions.T @ (random_directions @ jnp.ravel(loss_gradient(logits_fn, image))) / directions
    return pixels(projected.reshape(image.shape))


def tangent_projected(attribution: Attribution, manifold: Manifold) -> Attribution:
    """An attribution of what a network does along the manifold (Anders et al., 2020), from any other.

    The attribution is given the network x -> f(x0 + B B^T (x - x0)), x0 the image and B its tangent space: the gradient
    of that at the image is the network's own, projected on the tangent space.
    """

    def projected(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        basis, _ = manifold.tangent_space(image)

        def along(x: Array) -> Array:
            moved = basis @ (basis.T @ jnp.ravel(x - image))
            return logits_fn(image + moved.reshape(image.shape))

        return attribution(key, along, image)

    return projected


def smoothed(attribution: Attribution, samples: int = 50, noise: float = 0.3) -> Attribution:
    """Any attribution averaged over noisy images, as SmoothGrad (Smilkov et al., 2017) averages gradients.

    1 / samples sum_i A(x + e_i), e_i Gaussian; each map explains what the network predicts for its own noisy image,
    where `smoothgrad` keeps to the prediction for the image itself.

    Args:
      attribution: what is averaged.
      samples: noisy images.
      noise: standard deviation, in pixel units; 0.3 is 15% of the range [-1, 1].

    Raises:
      ValueError: if there are no samples, or the noise is negative or not finite.
    """
    checked_count("sample", samples)
    noise = checked_noise(noise)

    def smooth(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
        image = checked_example(logits_fn, image)

        def one(key: Array) -> Array:
            drawn, own = jax.random.split(key)
            return attribution(own, logits_fn, image + noise * jax.random.normal(drawn, image.shape, image.dtype))

        return jax.lax.map(one, jax.random.split(key, samples), batch_size=min(samples, 10)).mean(0)

    return smooth


def key_named(key: Array, name: str) -> Array:
    """A random key that depends on a key and a name alone."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def rank_map(key: Array, values: Array) -> Array:
    """Ranks of an image's pixels, 0 for the highest value, ties (and NaN) in an order drawn from the key.

    Returns a permutation of 0..pixels - 1 in the shape of `values`, in the smallest unsigned integers that
    hold it.
    """
    flat = jnp.ravel(jnp.asarray(values))
    # Bytes would wrap around where they are negated.
    flat = flat if jnp.issubdtype(flat.dtype, jnp.floating) else flat.astype(jnp.float32)
    order = jnp.lexsort((jax.random.uniform(key, flat.shape), -flat))
    ranks = jnp.zeros(flat.size, _smallest(flat.size)).at[order].set(jnp.arange(flat.size, dtype=_smallest(flat.size)))
    return ranks.reshape(jnp.shape(values))


def coin_map(key: Array, image: Array) -> Array:
    """A 'rank' drawn for each pixel by itself, so that a threshold keeps or removes pixels independently.

    The paper's Random: where `rank_map` of noise takes the same number of pixels from every image, here the
    number is binomial. In the range and type of `rank_map`.
    """
    pixels = image.shape[0] * image.shape[1]
    return jax.random.randint(key, image.shape[:2], 0, pixels).astype(_smallest(pixels))


def _smallest(values: int) -> jnp.dtype:
    return jnp.dtype(jnp.uint8 if values <= 2**8 else jnp.uint16 if values <= 2**16 else jnp.uint32)
