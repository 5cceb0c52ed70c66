"""Augmentations of one training image, functions `(key, image) -> image` for images `[H, W, C]` in [-1, 1].

They run on the device, before the attack, with a key of each image, so that the result does not depend on how a batch
is split. To add one is to write its builder, whose argument is a number with a default, and name it in `AUGMENTATIONS`.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.data.checks import checked_count

Augmentation = Callable[[Array, Array], Array]


def flip() -> Augmentation:
    """Mirrors left and right in half of the cases."""

    def augment(key, image):
        return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

    return augment


def crop(padding: int = 4) -> Augmentation:
    """Shifts by up to `padding` pixels each way: pads with black (-1) on all sides and cuts the image's size out.

    Raises:
      ValueError: if the padding is below 1; when called, if it is not smaller than the image.
    """
    checked_count("pixel of padding", padding)

    def augment(key, image):
        if padding >= min(image.shape[:2]):
            size = "x".join(map(str, image.shape[:2]))
            raise ValueError(f"expected a crop's padding smaller than the image, {size} pixels, got {padding}")
        edges = (padding, padding)
        padded = jnp.pad(image, (edges, edges, (0, 0)), constant_values=-1)
        row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return lax.dynamic_slice(padded, (row, column, 0), image.shape)

    return augment


def cutout(side: int = 8) -> Augmentation:
    """Greys out (0) a square of `side` pixels around a random pixel, cut off at the edges (DeVries and Taylor, 2017).

    Raises:
      ValueError: if the side is below 1; when called, if it is larger than the image.
    """
    checked_count("pixel of a cutout's side", side)

    def augment(key, image):
        if side > min(image.shape[:2]):
            size = "x".join(map(str, image.shape[:2]))
            raise ValueError(f"expected a cutout no larger than the image, {size} pixels, got {side}")
        centre = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2]))
        inside = [
            (jnp.arange(length) >= middle - side // 2) & (jnp.arange(length) < middle - side // 2 + side)
            for length, middle in zip(image.shape[:2], centre, strict=True)
        ]
        return jnp.where((inside[0][:, None] & inside[1])[..., None], 0, image).astype(image.dtype)

    return augment


def composed(augmentations: Sequence[Augmentation]) -> Augmentation:
    """One after another, each with a key of its own."""

    def augment(key, image):
        for place, one in enumerate(augmentations):
            image = one(jax.random.fold_in(key, place), image)
        return image

    return augment


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {"crop": crop, "flip": flip, "cutout": cutout}


def augmentation_named(names: Sequence[str]) -> Augmentation | None:
    """The augmentations of some names, in their order; a number may follow, as in `crop:2`. None for no names.

    Raises:
      ValueError: for a name that is none, a number that is none, or one that the augmentation refuses.
    """
    if isinstance(names, str):
        raise ValueError(f"expected augmentations as a list of names, got '{names}'; give ('{names}',)")
    found = []
    for text in names:
        name, _, number = text.partition(":")
        if name not in AUGMENTATIONS or (number and not number.isdecimal()) or (number and name == "flip"):
            some = ", ".join(AUGMENTATIONS)
            raise ValueError(f"expected augmentations of {some}, with a number of pixels as in crop:2, got '{text}'")
        found.append(AUGMENTATIONS[name](*[int(number)] if number else []))
    return composed(found) if found else None
