"""What a data set is: images as bytes, integer labels, and the checks that all else relies on."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    """Maps bytes 0..255 to float32 in [-1, 1]; images that are floating point already pass, as float32."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images if images.dtype == jnp.float32 else images.astype(jnp.float32)
    return _scaled(images)


@partial(jax.jit, inline=True)
def _scaled(images: Array) -> Array:
    return images.astype(jnp.float32) / 127.5 - 1.0


def check(split: Split, classes: int | None, name: str = "the data set", as_images: bool = True) -> None:
    """Raises `DataError` unless images and labels have the shapes, types and ranges that all else assumes.

    Args:
      split: images, bytes or floating point in [-1, 1], and labels.
      classes: how many there are; None where that is not known.
      name: what messages call the split.
      as_images: expect `[N, H, W, C]`; else `[N, ...]` will do.
    """
    images, labels = split
    if images.ndim != 4 if as_images else images.ndim < 2:
        wanted = "images of shape [N, H, W, C]" if as_images else "examples of shape [N, ...]"
        raise DataError(f"{name}: expected {wanted}, got {list(images.shape)}; add the missing axes")
    if not images.size:
        raise DataError(f"{name}: expected at least one image, got shape {list(images.shape)}")
    if images.dtype == np.uint8:
        pass
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise DataError(f"{name}: expected uint8 or floating-point images, got {images.dtype}; convert them")
    elif not (np.min(images) >= PIXEL_RANGE[0] and np.max(images) <= PIXEL_RANGE[1]):
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


def checked_split(split: Split, classes: int | None, name: str, as_images: bool = True) -> Split:
    """A split as library calls need it, of what `check` lets pass: bytes, or float32 in [-1, 1]; int32 labels `[N]`.

    Args:
      split, classes, name, as_images: as for `check`; labels may be `[N, 1]`, floats of any precision.

    Raises:
      DataError: as `check`.
    """
    images, labels = np.asarray(split[0]), np.asarray(split[1])
    if jnp.issubdtype(images.dtype, jnp.floating):
        images = images.astype(np.float32)
    labels = labels[:, 0] if labels.shape == (len(images), 1) else labels
    check(Split(images, labels), classes, name, as_images)
    return Split(images, labels.astype(np.int32))


def checked_images(images, pixel_range: tuple[float, float] = PIXEL_RANGE, as_images: bool = True) -> np.ndarray:
    """Images as library calls need them, checked once, outside of what is compiled; float32.

    Args:
      images: `[N, H, W, C]`, floating point in `pixel_range`, or bytes, which are mapped to it.
      pixel_range: smallest and largest value of a pixel.
      as_images: expect four axes; else `[N, ...]` will do.

    Raises:
      DataError: in one line, saying what was expected, what came and what to do.
      ValueError: if the range is empty.
    """
    low, high = pixel_range
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"expected a pixel range (low, high) with low < high, got {pixel_range}")
    images = np.asarray(images)
    if as_images:
        _check_axes(images.shape)
    elif images.ndim < 2:
        raise DataError(f"expected examples of shape [N, ...], got {list(images.shape)}; give one as images[None]")
    if not images.size:
        raise DataError("expected at least one image, got none")
    if images.dtype == np.uint8:
        images = images.astype(np.float32) * ((high - low) / 255) + low
    elif not jnp.issubdtype(images.dtype, jnp.floating):
        raise DataError(f"expected uint8 or floating-point images, got {images.dtype}; convert them")
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        bad = int((~np.isfinite(images.reshape(len(images), -1)).all(1)).sum())
        raise DataError(f"expected finite pixels, got NaN or infinity in {bad} of {len(images)} images")
    if images.min() < low - 1e-6 or images.max() > high + 1e-6:
        raise DataError(
            f"expected pixels in [{low:g}, {high:g}], got {images.min():g} to {images.max():g}; rescale them, or say "
            "what range the network expects by pixel_range"
        )
    return np.clip(images, low, high)


def _check_axes(shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        one = "; give one image as images[None]" if len(shape) == 3 else ""
        raise DataError(f"expected images of shape [N, H, W, C], got {list(shape)}{one}")
    if shape[3] > 4 >= shape[1]:
        raise DataError(
            f"expected images of shape [N, H, W, C], got {list(shape)}, which looks like [N, C, H, W]; "
            "use images.transpose(0, 2, 3, 1)"
        )


def checked_labels(labels, count: int, classes: int) -> np.ndarray:
    """Labels `[N]` or `[N, 1]` of so many images and classes, checked; int32 `[N]`.

    Raises:
      DataError: in one line.
    """
    labels = np.asarray(labels)
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,):
        hint = "; give classes, not one-hot vectors" if labels.ndim == 2 else ""
        raise DataError(f"expected one label for each of {count} images, got shape {list(labels.shape)}{hint}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"expected integer labels, got {labels.dtype}; convert them")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"expected labels in 0..{classes - 1}, as many as the network has logits, got {labels.min()}.."
            f"{labels.max()}; renumber them"
        )
    return labels.astype(np.int32)


def checked_radius(name: str, radius, count: int) -> np.ndarray:
    """A radius or step size in pixel units, one for all or one an image, as float32 `[N]`.

    Raises:
      ValueError: if it is negative, not finite, or of another shape.
    """
    radius = np.asarray(radius, np.float32)
    if radius.shape not in ((), (count,)):
        raise ValueError(
            f"expected {name} as a number or one for each of {count} images, got shape {list(radius.shape)}"
        )
    if not (np.isfinite(radius).all() and (radius >= 0).all()):
        raise ValueError(f"expected {name} >= 0 in pixel units, got {radius.min():g}")
    return np.broadcast_to(radius, (count,))


_BATCHES = (
    "if it maps batches, give lambda image: network(image[None])[0]; a call for one image is mapped over a batch by "
    "jax.vmap"
)


def classes_of(logits_fn, shape, *variables) -> int:
    """How many logits a network of one image of a shape has, asked without running it.

    Raises:
      ValueError: if it does not map (variables and) one image to a vector of two logits or more.
    """
    try:
        logits = jax.eval_shape(logits_fn, *variables, jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
    except (TypeError, ValueError, IndexError) as error:
        reason = f"which this one does not take ({str(error).strip().splitlines()[0]})"
        raise ValueError(f"expected a network of one image of shape {list(shape)}, {reason}; {_BATCHES}") from error
    if not hasattr(logits, "shape") or logits.ndim != 1 or logits.shape[0] < 2:
        got = list(logits.shape) if hasattr(logits, "shape") else type(logits).__name__
        raise ValueError(f"expected a network of one image to a vector of two logits or more, got {got}; {_BATCHES}")
    return logits.shape[0]


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

    def is_one(network) -> bool:
        with contextlib.suppress(ValueError):
            return bool(classes_of(network, shape, *variables))
        return False

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


def checked_example(logits_fn, image, label=None, **numbers) -> Array:
    """The one image of an attack or attribution, checked as it is traced; float32.

    Shapes and types are always checked, values where they are known: within `jit` and `vmap` they are not.

    Args:
      logits_fn: image to logits.
      image: `[...]`, floating point.
      label: a class, or whatever else the loss understands, which is not looked at.
      numbers: radius and step size by name: scalars, not negative.

    Raises:
      DataError: if image or label are not of that form.
      ValueError: if the network is not one of one image, or a number is not of that form.
    """
    image = jnp.asarray(image)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise DataError(f"expected a floating-point image, got {image.dtype}; map bytes by data.scale")
    classes = classes_of(logits_fn, image.shape)
    if label is not None and jnp.ndim(label) == 0:
        if not jnp.issubdtype(jnp.result_type(label), jnp.integer):
            raise DataError(f"expected an integer label, got {jnp.result_type(label)}; convert it")
        if not isinstance(label, jax.core.Tracer) and not 0 <= int(label) < classes:
            raise DataError(f"expected a label in 0..{classes - 1}, as many as the network has logits, got {label}")
    for name, number in numbers.items():
        if jnp.ndim(number):
            raise ValueError(
                f"expected {name} as a number, got shape {list(jnp.shape(number))}; map the call by jax.vmap to give "
                "each image its own"
            )
        if not isinstance(number, jax.core.Tracer) and not (np.isfinite(number) and number >= 0):
            raise ValueError(f"expected {name} >= 0 in pixel units, got {number:g}")
    return image.astype(jnp.float32)
