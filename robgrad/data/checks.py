"""What sets of images, pixel ranges, labels, radii and counts must be, checked on the host, values and all."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from robgrad.data.images import PIXEL_RANGE, DataError, Split, float_type

# How far pixels may lie beyond their range, as a share of its width: rounding, the same everywhere.
TOLERANCE = 1e-6
Range = tuple[Any, Any]


def check(split: Split, classes: int | None, name: str = "the data set", as_images: bool = True) -> None:
    """Raises `DataError` unless images and labels have the shapes, types and ranges that all else assumes.

    Args:
      split: images, bytes or floating point in [-1, 1], and labels.
      classes: how many there are, at least 2; None where that is not known.
      name: what messages call the split.
      as_images: expect `[N, H, W, C]`; else `[N, ...]` will do.
    """
    images, labels = split
    if images.ndim != 4 if as_images else images.ndim < 2:
        wanted = "images of shape [N, H, W, C]" if as_images else "examples of shape [N, ...]"
        raise DataError(f"{name}: expected {wanted}, got {list(images.shape)}; add the missing axes")
    if images.ndim == 4:
        _check_channels_last(images.shape, f"{name}: ")
    if not images.size:
        raise DataError(f"{name}: expected at least one image, got shape {list(images.shape)}")
    low, high = PIXEL_RANGE
    slack = TOLERANCE * (high - low)
    if images.dtype == np.uint8:
        pass
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise DataError(f"{name}: expected uint8 or floating-point images, got {images.dtype}; convert them")
    elif not (np.min(images) >= low - slack and np.max(images) <= high + slack):
        raise DataError(
            f"{name}: expected floating-point images in {list(PIXEL_RANGE)}, got values from {np.min(images):g} to "
            f"{np.max(images):g}; rescale them"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name}: expected one integer label for each of {len(images)} images, got {labels.dtype} labels of shape "
            f"{list(labels.shape)}"
        )
    most = np.iinfo(np.int32).max if classes is None else classes - 1
    if labels.min() < 0 or labels.max() > most:
        wanted = "labels of 0 and above" if classes is None and labels.min() < 0 else f"labels in 0..{most}"
        raise DataError(
            f"{name}: expected {wanted}, got {labels.min()}..{labels.max()}; renumber them or give the right number of "
            "classes"
        )
    if classes is not None and classes < 2:
        raise DataError(f"{name}: expected at least 2 classes, got {classes}; there is nothing to tell apart")


def as_split(split: Any) -> Split:
    """Images and labels as a split: one, or a pair.

    Raises:
      DataError: if it is neither.
    """
    if hasattr(split, "images") and hasattr(split, "labels"):
        return split
    if type(split) is tuple and len(split) == 2:
        return Split(*split)
    hint = "; give dataset.train or dataset.test" if hasattr(split, "train") else ""
    raise DataError(f"expected a split of images and labels, got {type(split).__name__}{hint}")


def checked_split(split: Split, classes: int | None, name: str, as_images: bool = True) -> Split:
    """A split as library calls need it, of what `check` lets pass: bytes, or floats in [-1, 1]; int32 labels `[N]`.

    Args:
      split, classes, name, as_images: as for `check`; labels may be `[N, 1]`, floats of any precision.

    Raises:
      DataError: as `check`.
    """
    images, labels = np.asarray(split[0]), np.asarray(split[1])
    if jnp.issubdtype(images.dtype, jnp.floating):
        images = images.astype(float_type(images.dtype))
    labels = labels[:, 0] if labels.shape == (len(images), 1) else labels
    check(Split(images, labels), classes, name, as_images)
    if images.dtype != np.uint8:
        images = np.clip(images, *PIXEL_RANGE)
        _note_half_range(images, PIXEL_RANGE)
    return Split(images, labels.astype(np.int32))


def checked_images(images, pixel_range: Range = PIXEL_RANGE, as_images: bool = True) -> np.ndarray:
    """Images as library calls need them, checked once, outside of what is compiled; of `float_type`.

    Args:
      images: `[N, H, W, C]`, floating point in `pixel_range`, or bytes, which are mapped to it.
      pixel_range: smallest and largest value of a pixel; numbers, or one for each channel.
      as_images: expect four axes; else `[N, ...]` will do.

    Raises:
      DataError: in one line, saying what was expected, what came and what to do.
      ValueError: if the range is empty or infinite.
    """
    low, high = (np.asarray(bound) for bound in checked_finite_range(pixel_range))
    images = np.asarray(images)
    if as_images:
        check_axes(images.shape)
    elif images.ndim < 2:
        raise DataError(f"expected examples of shape [N, ...], got {list(images.shape)}; give one as images[None]")
    elif images.ndim == 4:
        _check_channels_last(images.shape)
    if not images.size:
        raise DataError("expected at least one image, got none")
    checked_range(pixel_range, images.shape[1:])
    if images.dtype == np.uint8:
        images = (images * ((high - low) / 255) + low).astype(np.float32)
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise DataError(f"expected uint8 or floating-point images, got {images.dtype}; convert them")
    images = images.astype(float_type(images.dtype))
    if not np.isfinite(images).all():
        bad = int((~np.isfinite(images.reshape(len(images), -1)).all(1)).sum())
        raise DataError(f"expected finite pixels, got NaN or infinity in {bad} of {len(images)} images")
    check_inside(images, (low, high))
    _note_half_range(images, (low, high))
    return np.clip(images, low.astype(images.dtype), high.astype(images.dtype))


def check_inside(images, pixel_range: Range) -> None:
    """Refuses NaN and pixels beyond their range by more than rounding; a bound of infinity holds nothing back."""
    low, high = (np.asarray(bound) for bound in pixel_range)
    slack = TOLERANCE * (high - low)
    with np.errstate(invalid="ignore"):
        inside = (images >= low - slack) & (images <= high + slack)
    if not np.all(inside | ~np.isfinite(high - low)):
        raise DataError(
            f"expected pixels in [{_shown(low)}, {_shown(high)}], got {np.min(images):g} to {np.max(images):g}; "
            "rescale them, or say what range the network expects by pixel_range"
        )


def _note_half_range(images: np.ndarray, pixel_range: Range) -> None:
    """Warns of images that look as if they were in [0, 1] where [-1, 1] is meant: the range cannot tell."""
    if all(
        np.ndim(bound) == 0 and float(bound) == own for bound, own in zip(pixel_range, PIXEL_RANGE, strict=True)
    ) and (half_range(images)):
        warnings.warn(HALF_RANGE, stacklevel=4)


HALF_RANGE = (
    "all pixels lie in [0, 1], and the pixel range is [-1, 1]: if the network expects [0, 1], say so by "
    "pixel_range=(0.0, 1.0), or map the images by 2 * images - 1"
)


def half_range(images: np.ndarray) -> bool:
    """Whether images fill [0, 1] and nothing below: images of [-1, 1] have dark pixels."""
    return bool(images.ndim == 4 and np.min(images) >= 0 and 0.5 < np.max(images) <= 1)


def _shown(bound: np.ndarray) -> str:
    return " ".join(f"{number:g}" for number in np.ravel(bound))


def checked_range(pixel_range: Range, image_shape: tuple[int, ...] | None = None) -> Range:
    """A pixel range as numbers, or as tuples of a number for each channel: values that can be compared and hashed.

    Args:
      pixel_range: smallest and largest value of a pixel, each a number or one for each channel.
      image_shape: of the images, where it is known.

    Raises:
      ValueError: if it is not of that form, or empty.
    """
    try:
        low, high = (np.asarray(bound, np.float64) for bound in pixel_range)
        channels = [bound.size for bound in (low, high) if bound.ndim == 1]
        fits = low.ndim <= 1 and high.ndim <= 1 and bool(np.all(low < high)) and len({*channels}) <= 1
        if channels and image_shape:
            fits = fits and channels[0] == image_shape[-1]
    except (TypeError, ValueError):
        fits = False
    if not fits:
        of = f" of an image of shape {list(image_shape)}" if image_shape else ""
        raise ValueError(
            f"expected a pixel range (low, high) with low < high, numbers or one for each channel{of}, got "
            f"{pixel_range}"
        )
    one, other = (float(bound) if bound.ndim == 0 else tuple(map(float, bound)) for bound in (low, high))
    return one, other


def checked_finite_range(pixel_range: Range) -> Range:
    """A pixel range as `checked_range` gives it, with two ends.

    Raises:
      ValueError: if it has not.
    """
    if not np.isfinite(np.subtract(*map(np.asarray, checked_range(pixel_range)))).all():
        raise ValueError(f"expected a finite pixel range, got {pixel_range}")
    return checked_range(pixel_range)


def clipped(image: Array, pixel_range: Range) -> Array:
    """An image with its pixels clipped to their range, numbers or one for each channel."""
    low, high = (np.asarray(bound, np.float64) for bound in pixel_range)
    # Bounds that the image's type does not hold are rounded inwards.
    inner = -rounded_down(-low, image.dtype), rounded_down(high, image.dtype)
    return jnp.clip(image, *(jnp.asarray(bound) for bound in inner))


def rounded_down(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers of the host in a type of fewer digits, none above itself: 0.05 is a little more than that in float32."""
    rounded = numbers.astype(dtype)
    return np.where(rounded > numbers, np.nextafter(rounded, np.asarray(-np.inf, dtype)), rounded).astype(dtype)


def check_axes(shape: tuple[int, ...]) -> None:
    """Refuses what has not the four axes of a set of images."""
    if len(shape) != 4:
        one = "; give one image as images[None]" if len(shape) == 3 else ""
        raise DataError(f"expected images of shape [N, H, W, C], got {list(shape)}{one}")
    _check_channels_last(shape)


def _check_channels_last(shape: tuple[int, ...], of: str = "") -> None:
    if shape[3] > 4 >= shape[1]:
        raise DataError(
            f"{of}expected images of shape [N, H, W, C], got {list(shape)}, which looks like [N, C, H, W]; "
            "use images.transpose(0, 2, 3, 1)"
        )


def checked_labels(labels, count: int, classes: int, name: str = "label") -> np.ndarray:
    """Labels `[N]` or `[N, 1]` of so many images and classes, checked; int32 `[N]`.

    Raises:
      DataError: in one line.
    """
    labels = np.asarray(labels)
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,):
        hint = "; give classes, not one-hot vectors" if labels.ndim == 2 else ""
        raise DataError(f"expected one {name} for each of {count} images, got shape {list(labels.shape)}{hint}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"expected integer {name}s, got {labels.dtype}; convert them")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"expected {name}s in 0..{classes - 1}, as many as the network has logits, got {labels.min()}.."
            f"{labels.max()}; renumber them"
        )
    return labels.astype(np.int32)


def checked_radius(name: str, radius, count: int) -> np.ndarray:
    """A radius or step size in pixel units, one for all or one an image, as float64 `[N]`.

    Raises:
      ValueError: if it is negative, not finite, or of another shape or kind.
    """
    radius = np.asarray(radius)
    if radius.shape not in ((), (count,)):
        raise ValueError(
            f"expected {name} as a number or one for each of {count} images, got shape {list(radius.shape)}"
        )
    check_number(name, radius.dtype)
    radius = radius.astype(np.float64)
    if not (np.isfinite(radius).all() and (radius >= 0).all()):
        raise ValueError(f"expected {name} >= 0 in pixel units, got {radius.min():g}")
    return np.broadcast_to(radius, (count,))


def check_number(name: str, dtype) -> None:
    """Refuses what wraps around when it is negated, and what is no number."""
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.signedinteger)):
        raise ValueError(f"expected {name} as a floating-point number in pixel units, got {dtype}; give a float")


def checked_count(name: str, count, least: int = 1) -> int:
    """A whole number of something, at least `least`.

    Raises:
      ValueError: if it is anything else.
    """
    count = _plain(count)
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise ValueError(f"expected a whole number, at least {least} {name}, got {count!r}")
    if count < least:
        raise ValueError(f"expected at least {least} {name}, got {count}")
    return int(count)


def checked_positive(name: str, number) -> float:
    """A number of something, above 0 and finite.

    Raises:
      ValueError: if it is anything else.
    """
    number = _plain(number)
    if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not 0 < number < np.inf:
        raise ValueError(f"expected {name} above 0, got {number!r}")
    return float(number)


def checked_noise(noise: Any) -> Any:
    """A standard deviation of noise: a number of 0 or more, finite; one that is traced passes.

    Raises:
      ValueError: if it is anything else.
    """
    noise = _plain(noise)
    if isinstance(noise, Tracer) and not noise.ndim:
        return noise
    if isinstance(noise, bool) or not isinstance(noise, int | float | np.number) or not 0 <= noise < np.inf:
        raise ValueError(f"expected a standard deviation of noise of 0 or more, got {noise!r}")
    return float(noise)


def _plain(number: Any) -> Any:
    """The number that an array of no axes holds, where it is known; anything else as it is."""
    is_array = isinstance(number, Array | np.ndarray) and number.ndim == 0 and not isinstance(number, Tracer)
    return number.item() if is_array else number
