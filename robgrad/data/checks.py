"""What calls of the library take, checked once where it enters: one line for what cannot be meant.

Sets of images are checked on the host, values and all. One image of an attack or attribution is checked as it is
traced: shapes and types always, values where they are known. They are known within `jax.vmap`, not within `jax.jit`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad.data.images import PIXEL_RANGE, DataError, Split, float_type, has_float64, scale

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
    if labels.min() < 0 or (classes is not None and labels.max() >= classes):
        wanted = "labels of 0 and above" if classes is None else f"labels in 0..{classes - 1}"
        raise DataError(
            f"{name}: expected {wanted}, got {labels.min()}..{labels.max()}; renumber them or give the right number of "
            "classes"
        )
    if classes is not None and classes < 2:
        raise DataError(f"{name}: expected at least 2 classes, got {classes}; there is nothing to tell apart")


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
        _check_axes(images.shape)
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
    _check_inside(images, (low, high))
    _note_half_range(images, (low, high))
    return np.clip(images, low.astype(images.dtype), high.astype(images.dtype))


def _check_inside(images, pixel_range: Range) -> None:
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


def _check_axes(shape: tuple[int, ...]) -> None:
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
    _check_number(name, radius.dtype)
    radius = radius.astype(np.float64)
    if not (np.isfinite(radius).all() and (radius >= 0).all()):
        raise ValueError(f"expected {name} >= 0 in pixel units, got {radius.min():g}")
    return np.broadcast_to(radius, (count,))


def _check_number(name: str, dtype) -> None:
    """Refuses what wraps around when it is negated, and what is no number."""
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.signedinteger)):
        raise ValueError(f"expected {name} as a floating-point number in pixel units, got {dtype}; give a float")


def checked_count(name: str, count, least: int = 1) -> int:
    """A whole number of something, at least `least`.

    Raises:
      ValueError: if it is anything else.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        raise ValueError(f"expected a whole number, at least {least} {name}, got {count}")
    if count < least:
        raise ValueError(f"expected at least {least} {name}, got {count}")
    return int(count)


def checked_positive(name: str, number) -> float:
    """A number of something, above 0 and finite.

    Raises:
      ValueError: if it is anything else.
    """
    if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not 0 < number < np.inf:
        raise ValueError(f"expected {name} above 0, got {number}")
    return float(number)


_BATCHES = (
    "if it maps batches, give lambda image: network(image[None])[0]; a call for one image is mapped over a batch by "
    "jax.vmap"
)


class ChangingError(ValueError):
    """A network that changes as it is called: its message says how to hold it still."""


def classes_of(logits_fn, shape, *variables, dtype=np.float32, least: int = 2) -> int:
    """How many logits a network of one image of a shape has, asked without running it.

    Raises:
      ValueError: if it does not map (variables and) one image to a vector of two floating-point logits, or as many as
        are wanted at least, or more.
    """
    return logits_of(logits_fn, shape, *variables, dtype=dtype, least=least).shape[0]


def logits_of(logits_fn, shape, *variables, dtype=np.float32, least: int = 2) -> jax.ShapeDtypeStruct:
    """Shape and type of what a network makes of one image of a shape and type; raises as `classes_of`."""
    try:
        logits = jax.eval_shape(logits_fn, *variables, jax.ShapeDtypeStruct(tuple(shape), dtype))
    except Exception as error:
        if type(error).__name__ == "TraceContextError":
            raise ChangingError(
                "expected a network that is the same after each call, got an NNX module that changes its own state: "
                "call module.eval() first, so that batch statistics and random streams stand still"
            ) from error
        by_flax = type(error).__module__.startswith("flax")
        if not by_flax and not isinstance(error, TypeError | ValueError | IndexError | KeyError | AttributeError):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        reason = f"which this one does not take ({said})"
        raise ValueError(f"expected a network of one image of shape {list(shape)}, {reason}; {_BATCHES}") from error
    if not hasattr(logits, "shape") or logits.ndim != 1 or logits.shape[0] < least:
        got = list(logits.shape) if hasattr(logits, "shape") else type(logits).__name__
        wanted = "two logits" if least == 2 else "one logit"
        raise ValueError(f"expected a network of one image to a vector of {wanted} or more, got {got}; {_BATCHES}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"expected floating-point logits, which have gradients, got {logits.dtype}")
    return logits


def image_type(logits_fn, shape, dtype, *variables) -> Any:
    """The type in which a network takes images of a type: float32, or with JAX's float64 on whichever is its own.

    An image of float32 becomes float64 for a network whose logits are that, and one of float64 becomes float32 for a
    network that takes nothing else.
    """
    own = float_type(dtype)
    if not has_float64():
        return own
    try:
        made = logits_of(logits_fn, shape, *variables, dtype=own).dtype
        return np.dtype(np.float64) if made == np.float64 else own
    except ValueError:
        other = np.dtype(np.float32 if own == np.float64 else np.float64)
        try:
            logits_of(logits_fn, shape, *variables, dtype=other)
        except ValueError:
            return own
        return other


@dataclass(frozen=True)
class OfBatches:
    """A network of batches as a function of one image; equal for equal networks, so that programs are shared."""

    network: Callable[..., Array]

    def __call__(self, *arguments) -> Array:
        """Logits `[classes]`, of variables where the network takes some and an image."""
        *variables, image = arguments
        return jnp.squeeze(self.network(*variables, image[None]), 0)


def of_one_image(logits_fn, shape, *variables) -> Callable[..., Array]:
    """The network given if it is one of one image; one of batches as a function of one image.

    Raises:
      ValueError: if it is neither, naming the mistake.
    """

    def takes(network, dtype) -> bool:
        try:
            return bool(classes_of(network, shape, *variables, dtype=dtype))
        except ChangingError:
            raise
        except ValueError:
            return False

    def is_one(network) -> bool:
        return takes(network, np.float32) or (has_float64() and takes(network, np.float64))

    batched = OfBatches(logits_fn)
    if is_one(logits_fn):
        return logits_fn
    if is_one(batched):
        return batched
    if len(shape) == 3 and is_one(lambda *given: batched(*given[:-1], given[-1].transpose(2, 0, 1))):
        raise ValueError(
            f"expected a network of images {list(shape)}, channels last, got one of batches [N, C, H, W]; give "
            "lambda image: network(image.transpose(2, 0, 1)[None])[0]"
        )
    classes_of(logits_fn, shape, *variables)  # Raises, and says what is wrong.
    return logits_fn


def known(value: Any) -> Any:
    """The value of an array where it is known: itself, or all of it within `jax.vmap`; None within `jax.jit`."""
    while isinstance(value, jax.core.Tracer):
        # What vmap traces holds all its values, what jit traces holds none.
        value = value.val if hasattr(value, "batch_dim") else None
    return value


def checked_pictures(images: Any) -> Array:
    """A set of pictures `[N, H, W, C]` to choose from, in the range of those that they stand for.

    Args:
      images: bytes, which are mapped to [-1, 1], or floating point of any range.

    Raises:
      DataError: if they are of another form, none, or not finite.
    """
    images = jnp.asarray(images)
    if not jnp.issubdtype(images.dtype, jnp.floating) and images.dtype != jnp.uint8:
        raise DataError(f"expected uint8 or floating-point images, got {images.dtype}; convert them")
    _check_axes(images.shape)
    if not images.size:
        raise DataError("expected at least one image, got none")
    values = known(images)
    if values is not None and not np.isfinite(np.asarray(values, np.float64)).all():
        raise DataError("expected finite pixels, got NaN or infinity")
    return scale(images)


def checked_example(logits_fn, image, label=None, least: int = 2) -> Array:
    """The one image of an attack or attribution, checked as it is traced; of `image_type`.

    Args:
      logits_fn: image to logits.
      image: `[...]`, floating point.
      label: a class; `(label, target)`, a goal; or whatever else the loss understands, which is not looked at.
      least: logits that the network has at least.

    Raises:
      DataError: if image or label are not of that form.
      ValueError: if the network is not one of one image.
    """
    image = jnp.asarray(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise DataError(f"expected a floating-point image, got {image.dtype}; map bytes by data.scale")
    values = known(image)
    if values is not None and not np.isfinite(np.asarray(values, np.float64)).all():
        raise DataError("expected finite pixels, got NaN or infinity")
    dtype = image_type(logits_fn, image.shape, image.dtype)
    classes = classes_of(logits_fn, image.shape, dtype=dtype, least=least)
    labels = label if isinstance(label, tuple) else (label,)
    if isinstance(label, list) or (isinstance(label, tuple) and len(label) != 2):
        raise DataError(f"expected a label, or a goal (label, target) of two, got {label}")
    for one in labels:
        if not isinstance(one, Array | np.ndarray | np.generic | int | float | None):
            raise DataError(f"expected an integer label, got {type(one).__name__}")
        if one is not None and jnp.ndim(one) and jnp.issubdtype(jnp.result_type(one), jnp.integer):
            shape = list(jnp.shape(one))
            raise DataError(f"expected one label for one image, got shape {shape}; map a batch by jax.vmap")
        if one is None or jnp.ndim(one):
            continue
        if not jnp.issubdtype(jnp.result_type(one), jnp.integer):
            raise DataError(f"expected an integer label, got {jnp.result_type(one)}; convert it")
        values = known(one)
        if values is not None and not (np.all(np.asarray(values) >= 0) and np.all(np.asarray(values) < classes)):
            raise DataError(f"expected a label in 0..{classes - 1}, as many as the network has logits, got {values}")
    goal = [known(one) for one in labels] if isinstance(label, tuple) else []
    if goal and all(one is not None for one in goal) and np.any(np.equal(*map(np.asarray, goal))):
        raise DataError(f"expected a target other than the label, got {goal[1]} for both")
    return image.astype(dtype)


def rounded_down(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers of the host in a type of fewer digits, none above itself: 0.05 is a little more than that in float32."""
    rounded = numbers.astype(dtype)
    return np.where(rounded > numbers, np.nextafter(rounded, np.asarray(-np.inf, dtype)), rounded).astype(dtype)


def checked_numbers(dtype, **numbers) -> list[Array]:
    """Radius and step size of an attack on one image, by name: scalars, not negative, of the image's type.

    A number that is traced, within `jax.jit`, becomes NaN where it is not.

    Raises:
      ValueError: if a number is not of that form.
    """
    for name, number in numbers.items():
        if not isinstance(number, Array | np.ndarray | np.generic | int | float):
            raise ValueError(f"expected {name} as a number in pixel units, got {number!r}")
        if jnp.ndim(number):
            raise ValueError(
                f"expected {name} as a number, got shape {list(jnp.shape(number))}; map the call by jax.vmap to give "
                "each image its own"
            )
        _check_number(name, jnp.result_type(number))
        values = known(number)
        if values is not None and not (np.isfinite(np.asarray(values, np.float64)).all() and np.all(values >= 0)):
            raise ValueError(f"expected {name} >= 0 in pixel units, got {np.min(values):g}")
    return [_narrowed(_of_a_ball(number), dtype) for number in numbers.values()]


def _of_a_ball(number: Any) -> Any:
    """A radius or step, NaN where it is traced and then negative or not finite: what it moves is of no class."""
    if known(number) is not None:
        return number
    return jnp.where((number >= 0) & jnp.isfinite(number), number, jnp.nan)


def _narrowed(number: Any, dtype: Any) -> Array:
    """A number in a type of perhaps fewer digits, not above itself, whether its value is known or traced."""
    if not isinstance(number, Array):
        return jnp.asarray(rounded_down(np.asarray(number), dtype))
    rounded = number.astype(dtype)
    if jnp.promote_types(number.dtype, dtype) == rounded.dtype:
        return rounded
    return jnp.where(rounded > number, jnp.nextafter(rounded, jnp.asarray(-jnp.inf, dtype)), rounded)


def within_range(image: Array, pixel_range: Range) -> Array:
    """The image of an attack, if it lies in the pixel range.

    Where its values are not known, within `jax.jit`, an image beyond the range becomes NaN, which is of no class to any
    network: clipped in silence it would leave its own ball.

    Raises:
      DataError: where its values are known.
      ValueError: if the range is not one of such images.
    """
    checked_range(pixel_range, image.shape)
    values = known(image)
    if values is not None:
        _check_inside(np.asarray(values), pixel_range)
        return clipped(image, pixel_range)
    low, high = (jnp.asarray(bound, image.dtype) for bound in pixel_range)
    slack = jnp.where(jnp.isfinite(high - low), TOLERANCE * (high - low), 0.0)
    inside = jnp.all((image >= low - slack) & (image <= high + slack))
    return jnp.where(inside, clipped(image, pixel_range), jnp.nan)


def pixels_of(name: str, value: Any, image: Array) -> Array:
    """A baseline, fill or other picture in an image's place, as an image `[H, W, C]`.

    Args:
      name: what messages call it.
      value: a number, a colour `[C]`, a grey picture `[H, W]` or an image `[H, W, C]`.
      image: `[H, W, C]`.

    Raises:
      DataError: if it is none of those.
    """
    if isinstance(value, str) or value is None:
        raise DataError(f"expected {name} as a number, a colour, a picture or an image, got {value!r}")
    value = jnp.asarray(value)
    if value.ndim and value.dtype == jnp.uint8:
        raise DataError(f"expected {name} in the image's own range, floating point, got bytes; map them by data.scale")
    value = value.astype(image.dtype)
    if value.ndim == 2 and value.shape == image.shape[:2]:
        value = value[..., None]
    fits = value.ndim == 0 or value.shape in (image.shape[-1:], image.shape, (*image.shape[:2], 1))
    if not fits:
        raise DataError(
            f"expected {name} as a number, a colour [{image.shape[-1]}], a picture {list(image.shape[:2])} or an image "
            f"{list(image.shape)}, got shape {list(value.shape)}"
        )
    return jnp.broadcast_to(value, image.shape)


def mask_of(mask: Any, shape: tuple[int, ...]) -> Array:
    """A mask of what matters as bool `[..., H, W]`: a pixel is within where its value is above a half.

    Args:
      mask: `[..., H, W]` or `[..., H, W, 1]`; bool, 0 and 1, or bytes 0 and 255, of any type.
      shape: `[..., H, W]` expected.

    Raises:
      DataError: if it is of another shape.
    """
    mask = _one_a_pixel(mask, shape, "a mask", "")
    return mask > 0.5 if mask.dtype != bool else mask


def checked_map(values: Any, shape: tuple[int, ...]) -> Array:
    """A map of one image, one value a pixel `[H, W]`; `[H, W, 1]` will do.

    Raises:
      DataError: if it is of another shape.
    """
    hint = "; sum over channels, for instance by gradients.outputs.absolute"
    values = _one_a_pixel(values, shape, "a map of one value a pixel,", hint)
    # Bytes would wrap around where they are negated.
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.float32)


def _one_a_pixel(values: Any, shape: tuple[int, ...], what: str, hint: str) -> Array:
    """Values of a shape, or of that with an axis of one channel behind it, which goes."""
    values = jnp.asarray(values)
    values = values[..., 0] if values.shape == (*shape, 1) else values
    if values.shape != tuple(shape):
        raise DataError(f"expected {what} of shape {list(shape)}, got {list(values.shape)}{hint}")
    return values
