"""What a data set is: images as bytes, integer labels, and what may be known of them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
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

    def take(self, rows: Any) -> "Split":
        """Some of them: the first so many, or all where there are fewer; a slice, a mask `[N]` or places `[M]`.

        Raises:
          DataError: if the rows are none of these, or not there.
        """
        count = len(self.labels)
        if isinstance(rows, slice):
            return Split(self.images[rows], self.labels[rows])
        wanted = np.asarray(rows)
        if wanted.ndim == 0 and wanted.dtype.kind in "iu" and wanted >= 0:
            return self.take(slice(int(wanted)))
        is_mask = wanted.dtype == bool and wanted.shape == (count,)
        are_places = wanted.ndim == 1 and (wanted.dtype.kind in "iu" or not wanted.size)
        if not is_mask and not (are_places and np.all((wanted >= -count) & (wanted < count))):
            raise DataError(f"expected a number, a slice, a mask [{count}] or places below {count}, got {rows!r}")
        wanted = wanted if wanted.size else wanted.astype(np.int32)
        return Split(self.images[wanted], self.labels[wanted])


class Truth(NamedTuple):
    """What is known of a data set that was generated from codes: its image manifold.

    Attributes:
      decode: `(label, code)` to an image `[H, W, C]` in [-1, 1], differentiable twice in the code by reverse mode.
      train_codes, test_codes: `[N, z]`, those of the images.
      box: largest absolute value of a code's components; infinity where there is none.
      mask: `(label, code)` to `[H, W]`, whether a pixel is the object's; None where there is no object.
      variables: of the decoder, where it is a trained network.
    """

    decode: Callable[[Array, Array], Array]
    train_codes: np.ndarray
    test_codes: np.ndarray
    box: float = np.inf
    mask: Callable[[Array, Array], Array] | None = None
    variables: Mapping[str, Any] = {}


class Dataset(NamedTuple):
    """A named data set with its class names and its two splits, and what else is known of it.

    Attributes:
      truth: about its manifold, where it was generated.
      test_masks: `[N, H, W]` bool, which pixels of each test image matter to an expert.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    truth: Truth | None = None
    test_masks: np.ndarray | None = None


def scale(images: Array) -> Array:
    """Maps bytes 0..255 to float32 in [-1, 1]; images that are floating point already pass, as `float_type` says.

    Raises:
      DataError: for truth values, and integers of other types, whose range nobody knows.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images if images.dtype == float_type(images.dtype) else images.astype(float_type(images.dtype))
    if images.dtype != jnp.uint8:
        raise DataError(f"expected uint8 or floating-point images, got {images.dtype}; convert them")
    return _scaled(images)


@partial(jax.jit, inline=True)
def _scaled(images: Array) -> Array:
    # XLA multiplies by the reciprocal of 127.5, by which 255 would come out at 1 + 1.2e-7.
    return jnp.minimum(images.astype(jnp.float32) / 127.5 - 1.0, 1.0)


def float_type(dtype: Any) -> Any:
    """The floating-point type in which images of a type are computed: float64 where JAX has that on, else float32."""
    return np.dtype(np.float64 if jnp.dtype(dtype) == np.float64 and has_float64() else np.float32)


def has_float64() -> bool:
    """Whether JAX has its float64 on, `JAX_ENABLE_X64`."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64
