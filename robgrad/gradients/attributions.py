"""Attributions of one image: which of its pixels a network's decision rests on, one value a pixel.

An attribution is `(key, logits_fn, image) -> values`, `[H, W, C]` to `[H, W]`; `jax.vmap` makes batches. To
add one is to write such a function and, for the experiments' flags, to name it in `ATTRIBUTIONS`.
"""

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from robgrad.attacks import Loss, cross_entropy
from robgrad.data.images import DataError, checked_example
from robgrad.manifolds import Manifold
from robgrad.networks import LogitsFn

Attribution = Callable[[Array, LogitsFn, Array], Array]


def loss_gradient(logits_fn: LogitsFn, image: Array, label: Array | None = None, loss: Loss = cross_entropy) -> Array:
    """Gradient of the loss by one image; at the network's own prediction where no label is given."""
    image = checked_example(logits_fn, image, label)
    if label is None:
        label = jnp.argmax(logits_fn(image))
    return jax.grad(lambda x: loss(logits_fn(x), label))(image)


def gradient(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
    """|dL/dx| of the cross-entropy at the predicted label, summed over channels (Simonyan et al., 2014)."""
    del key
    return _per_pixel(loss_gradient(logits_fn, image))


def gradient_times_input(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
    """|x * dL/dx| of the cross-entropy at the predicted label, summed over channels; x in [-1, 1]."""
    del key
    return _per_pixel(image * loss_gradient(logits_fn, image))


def random(key: Array, logits_fn: LogitsFn, image: Array) -> Array:
    """Uniform noise: a ranking of the pixels at random, the baseline that spends the same budget on every image."""
    del logits_fn
    return jax.random.uniform(key, image.shape[:-1])


def gradient_random_projection(key: Array, logits_fn: LogitsFn, image: Array, directions: int = 10) -> Array:
    """A control for attributions projected on a manifold: the gradient's part along random directions.

    |P dL/dx| summed over channels, P = G G^T / directions for a Gaussian G `[pixels, directions]` drawn from the
    key: as few dimensions as a manifold has, and no knowledge of the data.
    """
    random_directions = jax.random.normal(key, (directions, image.size))
    projected = random_directions.T @ (random_directions @ jnp.ravel(loss_gradient(logits_fn, image))) / directions
    return _per_pixel(projected.reshape(image.shape))


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


def _per_pixel(values: Array) -> Array:
    """Absolute values `[H, W, C]` summed over channels."""
    if values.ndim != 3:
        raise DataError(f"expected one image [H, W, C], got {list(values.shape)}; map a batch by jax.vmap")
    return jnp.abs(values).sum(-1)


# What experiments offer by flag.
ATTRIBUTIONS: dict[str, Attribution] = {
    "gradient": gradient,
    "gradient_times_input": gradient_times_input,
    "gradient_random_projection": gradient_random_projection,
}


def key_named(key: Array, name: str) -> Array:
    """A random key that depends on a key and a name alone."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def rank_map(key: Array, values: Array) -> Array:
    """Ranks of an image's pixels, 0 for the highest value, ties (and NaN) in an order drawn from the key.

    Returns a permutation of 0..pixels - 1 in the shape of `values`, in the smallest unsigned integers that
    hold it.
    """
    flat = jnp.ravel(values)
    order = jnp.lexsort((jax.random.uniform(key, flat.shape), -flat))
    ranks = jnp.zeros(flat.size, _smallest(flat.size)).at[order].set(jnp.arange(flat.size, dtype=_smallest(flat.size)))
    return ranks.reshape(values.shape)


def coin_map(key: Array, image: Array) -> Array:
    """A 'rank' drawn for each pixel by itself, so that a threshold keeps or removes pixels independently.

    The paper's Random: where `rank_map` of noise takes the same number of pixels from every image, here the
    number is binomial. In the range and type of `rank_map`.
    """
    pixels = image.shape[0] * image.shape[1]
    return jax.random.randint(key, image.shape[:2], 0, pixels).astype(_smallest(pixels))


def _smallest(values: int) -> jnp.dtype:
    return jnp.dtype(jnp.uint8 if values <= 2**8 else jnp.uint16 if values <= 2**16 else jnp.uint32)
