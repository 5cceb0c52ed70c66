"""What a call is given, checked as it is traced: a network's logits, one image and its label, numbers, masks, maps.

Shapes and types are checked always, values where they are known: within `jax.vmap` they are, within `jax.jit` not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad.data.checks import (
    TOLERANCE,
    Range,
    check_axes,
    check_inside,
    check_number,
    checked_range,
    clipped,
    rounded_down,
)
from robgrad.data.images import DataError, float_type, has_float64, scale

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
        if hint := _of_library(logits_fn):
            raise ValueError(f"expected a network as a function of one image, {hint}") from error
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


def _of_library(network: Any) -> str:
    """What came, and how it becomes a function, where a network is given as its library's module."""
    kinds = {one.__module__.split(".")[0]: one.__name__ for one in type(network).__mro__}
    if "torch" in kinds:
        return "got a PyTorch module; give networks.of_torch(module, image_shape)"
    if "flax" in kinds and hasattr(network, "apply"):
        return "got a linen module without its variables; give networks.logits_fn(module, variables)"
    return ""


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


def checked_like(image: Any, shape: tuple[int, ...]) -> Array:
    """One floating-point image of a shape.

    Raises:
      ValueError: if it is of another, or bytes.
    """
    image = jnp.asarray(image)
    if image.shape != tuple(shape):
        raise ValueError(f"expected an image of shape {list(shape)}, got {list(image.shape)}")
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"expected a floating-point image, got {image.dtype}; map bytes by data.scale")
    return image


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
    check_axes(images.shape)
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
    if isinstance(label, tuple) and any(one is None for one in label):
        raise DataError(f"expected a goal (label, target) of two classes, got {label}")
    if goal and all(one is not None for one in goal) and np.any(np.equal(*map(np.asarray, goal))):
        raise DataError(f"expected a target other than the label, got {goal[1]} for both")
    return image.astype(dtype)


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
        check_number(name, jnp.result_type(number))
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
        check_inside(np.asarray(values), pixel_range)
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
      DataError: if it is of another shape, or holds NaN where that is known.
    """
    mask = _one_a_pixel(mask, shape, "a mask", "")
    values = known(mask)
    if values is not None and jnp.issubdtype(mask.dtype, jnp.floating) and np.isnan(np.asarray(values)).any():
        raise DataError("expected a mask of numbers, got NaN")
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
