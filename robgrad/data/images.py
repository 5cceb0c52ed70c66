"""What a data set is: images as bytes, integer labels, and the checks that all else relies on."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

PIXEL_RANGE = (-1.0, 1.0)


class DataError(ValueError):
    """A data set that is missing, unreadable or not of labelled images; its message is for the user."""


class Split(NamedTuple):
    """Images `[N, H, W, C]` (uint8; float32 in [-1, 1] for the toy) and labels `[N]` (int32)."""

    images: np.ndarray
    labels: np.ndarray


class Dataset(NamedTuple):
    """A named data set with its class names and its two splits."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split


def scale(images: Array) -> Array:
    """Maps bytes 0..255 to float32 in [-1, 1]; images that are floating point already pass unchanged."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    return images.astype(jnp.float32) / 127.5 - 1.0


def check(split: Split, classes: int, name: str = "the data set") -> None:
    """Raises `DataError` unless images and labels have the shapes, types and ranges that all else assumes."""
    images, labels = split
    if images.ndim != 4:
        raise DataError(
            f"{name}: expected images of shape [N, H, W, C], got {list(images.shape)}; add the missing axes"
        )
    if images.dtype == np.uint8:
        pass
    elif not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{name}: expected uint8 or floating-point images, got {images.dtype}; convert them")
    elif images.size and not (np.min(images) >= PIXEL_RANGE[0] and np.max(images) <= PIXEL_RANGE[1]):
        raise DataError(
            f"{name}: expected floating-point images in {list(PIXEL_RANGE)}, got values from {np.min(images):g} to "
            f"{np.max(images):g}; rescale them"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name}: expected one integer label for each of {len(images)} images, got {labels.dtype} labels of shape "
            f"{list(labels.shape)}"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < classes):
        raise DataError(
            f"{name}: expected labels in 0..{classes - 1}, got {labels.min()}..{labels.max()}; renumber them or give "
            "the right number of classes"
        )
