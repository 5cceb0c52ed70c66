"""A spurious mark: a few pixels whose place gives the class away, known and so removable; and masks of an expert."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robgrad.data.checks import checked_labels
from robgrad.data.images import PIXEL_RANGE, DataError, Dataset, Split

# Side of the mark, in pixels.
SIDE = 2


def places(image_shape: Sequence[int], classes: int, side: int = SIDE) -> np.ndarray:
    """Where the mark of each class is, row and column of its corner `[classes, 2]`: spread along the image's border.

    Raises:
      DataError: if the border is too short for so many classes.
    """
    height, width = image_shape[:2]
    rows, columns = np.arange(0, height - side + 1, side), np.arange(0, width - side + 1, side)
    border = [(0, at) for at in columns] + [(at, columns[-1]) for at in rows[1:]]
    border += [(rows[-1], at) for at in columns[-2::-1]] + [(at, 0) for at in rows[-2:0:-1]]
    if classes > len(border):
        raise DataError(f"expected at most {len(border)} classes for marks of {side} pixels, got {classes}")
    return np.array(border)[np.arange(classes) * len(border) // classes]


def marked(split: Split, classes: int, keys: np.ndarray, side: int = SIDE) -> Split:
    """The images with a white mark each, in the place that belongs to its key.

    Args:
      split: bytes, or floating point in [-1, 1].
      classes: how many there are.
      keys: `[N]`, whose mark each image gets: its label's for a mark that tells, another class's for one that misleads.
      side: of the square mark, in pixels.

    Raises:
      DataError: if the keys are not a class for each image.
    """
    keys = checked_labels(keys, len(split.images), classes, "key")
    images, corners = split.images.copy(), places(split.images.shape[1:], classes, side)
    white = 255 if images.dtype == np.uint8 else PIXEL_RANGE[1]
    for key in range(classes):
        row, column = corners[key]
        images[keys == key, row : row + side, column : column + side] = white
    return Split(images, split.labels)


def agreeing(labels: np.ndarray, classes: int, share: float, seed: int) -> np.ndarray:
    """Keys `[N]`: the label for a share of the images on average, and any class, the label too, for the others.

    Raises:
      ValueError: if the share is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share of images in [0, 1], got {share}")
    generator = np.random.default_rng(seed)
    others = generator.integers(0, classes, len(labels))
    return np.where(generator.random(len(labels)) < share, labels, others).astype(np.int32)


def misleading(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Keys `[N]` of another class than each label."""
    steps = np.random.default_rng(seed).integers(1, classes, len(labels))
    return ((labels + steps) % classes).astype(np.int32)


def has_masks(dataset: Dataset) -> bool:
    """Whether it is known which pixels of the test images matter."""
    return dataset.test_masks is not None or (dataset.truth is not None and dataset.truth.mask is not None)


def test_masks(dataset: Dataset, count: int) -> np.ndarray:
    """Which pixels of the first test images matter: an expert's masks, or the known object's, `[count, H, W]` bool.

    Raises:
      DataError: if the set has neither.
    """
    if dataset.test_masks is not None:
        return dataset.test_masks[:count]
    truth = dataset.truth
    if truth is None or truth.mask is None:
        raise DataError(
            f"{dataset.name}: expected a data set with masks of what matters, got one without; give rendered shapes, "
            "or an .npz file with an array test_masks"
        )
    known = jax.jit(jax.vmap(truth.mask))(
        jnp.asarray(dataset.test.labels[:count]), jnp.asarray(truth.test_codes[:count])
    )
    return np.asarray(known) > 0.5
