"""The input-gradient analyser: how much of a network's loss gradient lies along the image manifold.

The paper's explanation of why adversarial training makes gradients meaningful is that it confines
them to the manifold. Its evidence is indirect, the distance of attacked images to the manifold; here
the gradient itself is split into its part in the manifold's tangent space and the rest.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad.attacks import Attack, Loss, cross_entropy, length, no_attack
from robgrad.attacks.doubts import of_probabilities
from robgrad.attacks.pgd import sizes_given
from robgrad.data import PIXEL_RANGE
from robgrad.data.calls import image_type, logits_of, of_one_image
from robgrad.data.checks import Range, checked_count, checked_images, checked_labels, checked_radius, checked_range
from robgrad.gradients.attributions import loss_gradient
from robgrad.gradients.measures import tangent_fraction
from robgrad.manifolds import Manifold, TangentSpace, distance
from robgrad.networks import LogitsFn, OfOne, with_fast_convolutions
from robgrad.plots import axes_of

# Images whose outputs tell whether they are probabilities.
_LOOKED_AT = 10


class Alignment(NamedTuple):
    """One image's loss gradient g against the manifold; scalars, or arrays `[N]` for a batch.

    Attributes:
      gradient_norm: ||g||_2, loss per pixel unit.
      tangent_fraction: ||B^T g||^2 / ||g||^2 for an orthonormal basis B of the tangent space at the
        image's projection; NaN where the gradient is zero.
      chance: the expectation of `tangent_fraction` for a random direction, rank(B) / pixels; the
        latent dimension over the pixels where the decoder's Jacobian has full rank.
      cosine: cosine of the angle between g and its tangent part B B^T g, the root of the fraction.
      distance: l2 distance of the image to the manifold, in pixel units.
      attacked_distance: the same of the attacked image.
    """

    gradient_norm: Array
    tangent_fraction: Array
    chance: Array
    cosine: Array
    distance: Array
    attacked_distance: Array

    def to_rows(self) -> list[dict[str, float]]:
        """A row for each image."""
        columns = [np.atleast_1d(values) for values in self]
        return [dict(zip(self._fields, map(float, values), strict=True)) for values in zip(*columns, strict=True)]

    def plot(self, axes: Any = None) -> Any:
        """Draws how tangent fractions are spread, beside their chance; returns the matplotlib axes."""
        axes, fractions = axes_of(axes), np.atleast_1d(self.tangent_fraction)
        axes.hist(fractions[np.isfinite(fractions)], bins=20, range=(0, 1), color="tab:blue", alpha=0.7)
        axes.axvline(float(np.nanmean(fractions)), color="tab:blue", label="mean")
        axes.axvline(float(np.mean(self.chance)), color="black", linestyle="--", label="a random direction")
        axes.set(xlabel="share of the loss gradient along the manifold", ylabel="images")
        axes.legend(frameon=False)
        return axes


def align(
    logits_fn: LogitsFn,
    manifold: Manifold,
    image: Array,
    attacked: Array,
    label: Array | None = None,
    loss: Loss = cross_entropy,
    tangent: TangentSpace | None = None,
) -> Alignment:
    """Analyses one network at one image; map it by `jax.vmap`, or see `analyser`.

    Args:
      logits_fn: image to logits `[C]`; any differentiable JAX function.
      manifold: any `Manifold` of images of that shape.
      image: `[...]`, in the range that network and manifold expect.
      attacked: the attacked image.
      label: class whose loss is differentiated; the network's own prediction where None.
      loss: loss of one example.
      tangent: the manifold's tangent space at the image's projection, where it is known already, for
        instance from another network: it costs more than all the rest.
    """
    image, attacked = jnp.asarray(image), jnp.asarray(attacked)
    if attacked.shape != image.shape:
        raise ValueError(f"expected an attacked image of shape {list(image.shape)}, got {list(attacked.shape)}")
    gradient = loss_gradient(logits_fn, image, label, loss)
    basis, rank = manifold.tangent_space(image) if tangent is None else tangent
    fraction = tangent_fraction(gradient, basis)
    return Alignment(
        length(gradient),
        fraction,
        rank / image.size,
        jnp.sqrt(fraction),
        distance(manifold, image),
        distance(manifold, attacked),
    )


def analyser(
    logits_fn: LogitsFn,
    manifold: Manifold,
    *,
    loss: Loss = cross_entropy,
    attack: Attack = no_attack,
    true_label: bool = False,
    chunk: int = 100,
    pixel_range: Range = PIXEL_RANGE,
    progress: Callable[[str], None] | None = None,
) -> Callable[..., Alignment]:
    """Compiles `align` for batches of one network and manifold, with the attack before it.

    Args:
      logits_fn: the network, image `[...]` to logits, or of a batch.
      manifold: any `Manifold` of images of that shape.
      loss: whose gradient is analysed.
      attack: what the attacked image is made by; it ascends its own loss.
      true_label: take the gradient at the label given instead of the network's own prediction.
      chunk: images at a time, at least 1; any number of images beyond it meets the same compiled program.
      pixel_range: smallest and largest value of a pixel; numbers, or one for each channel.
      progress: called with a line after each chunk, for instance `print`.

    Returns:
      `analyse(images, labels, epsilon=None, step_size=None, key=None)` to an `Alignment` of arrays `[N]`, for images
      `[N, ...]`, bytes or in the pixel range; radius and step size are numbers or one an image, and must be given
      where an attack needs them. It warns of outputs that look like probabilities, and raises `DataError` or
      `ValueError` in one line for anything else.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robgrad import attacks, gradients, manifolds
      >>> weights = jax.random.normal(jax.random.key(0), (16, 3))
      >>> plane = manifolds.autoencoder(lambda x: x[:2], lambda z: jnp.concatenate([z, jnp.zeros(14)]))
      >>> attack = attacks.pgd(attacks.L2, attacks.cross_entropy, steps=10)
      >>> analyse = gradients.analyser(lambda x: x @ weights, plane, attack=attack)
      >>> result = analyse(jnp.zeros((5, 16)), jnp.arange(5) % 3, epsilon=0.5, step_size=0.2)
      >>> result.tangent_fraction.shape, float(result.chance[0])
      ((5,), 0.125)
    """

    checked_count("image in a chunk", chunk)
    pixel_range = checked_range(pixel_range)
    own_range = getattr(attack, "pixel_range", pixel_range)
    if own_range != pixel_range:
        raise ValueError(f"expected an attack of pixels in {pixel_range}, as the analyser's, got one in {own_range}")

    def of_example(own, key, image, label, epsilon, step_size):
        attacked = attack(key, own, image, label, epsilon, step_size)
        return align(own, manifold, image, attacked, label if true_label else None, loss)

    @jax.jit
    def run(*examples):
        own = of_one_image(logits_fn, examples[1].shape[1:])
        own = own if isinstance(own, OfOne) else with_fast_convolutions(own)
        return jax.vmap(partial(of_example, own))(*examples)

    def analyse(images, labels, epsilon=None, step_size=None, key=None):
        images = checked_images(images, pixel_range, as_images=False)
        count, own = len(images), of_one_image(logits_fn, images.shape[1:])
        images = images.astype(image_type(own, images.shape[1:], images.dtype))
        labels = checked_labels(labels, count, logits_of(own, images.shape[1:], dtype=images.dtype).shape[0])
        for doubt in of_probabilities(np.asarray(jax.vmap(own)(images[:_LOOKED_AT]))):
            warnings.warn(doubt, stacklevel=2)
        given = zip(("epsilon", "step_size"), sizes_given(attack, epsilon, step_size), strict=True)
        numbers = [checked_radius(name, value, count) for name, value in given]
        keys = jax.random.split(jax.random.key(0) if key is None else key, count)
        examples, size = (keys, images, labels, *numbers), min(chunk, count)
        parts = []
        for start in range(0, count, size):
            # The last chunk is filled up with its last image, so that nothing compiles anew.
            index = np.minimum(np.arange(start, start + size), count - 1)
            parts.append(run(*(each[index] for each in examples)))
            if progress:
                jax.block_until_ready(parts[-1])
                progress(f"{min(start + size, count)} of {count} images")
        return jax.tree.map(lambda *columns: jnp.concatenate(columns)[:count], *parts)

    return analyse
