"""What is done to pixels before a network that was trained elsewhere sees them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import Array


def normalised(
    channels: int,
    pixel_range: tuple[float, float],
    input_range: tuple[float, float],
    mean: Sequence[float] | float,
    std: Sequence[float] | float,
) -> Callable[[Array], Array]:
    """Builds the map of images `[..., channels]` from one range of pixels to another, then (pixel - mean) / std.

    Raises:
      ValueError: if a range is empty, a deviation not above 0, or there is not one number for each channel.
    """
    try:
        bounds = [_by_channel("range", bound, channels) for bound in (*pixel_range, *input_range)]
        fits = len(bounds) == 4 and bool(np.all(bounds[1] > bounds[0]) and np.all(bounds[3] > bounds[2]))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"expected ranges that are not empty, got {pixel_range} and {input_range}")
    offset, scale = (_by_channel(name, value, channels) for name, value in (("mean", mean), ("std", std)))
    if not (scale > 0).all():
        raise ValueError(f"expected deviations above 0, got {std}")

    def shown(images: Array) -> Array:
        first, last, low, high = (bound.astype(images.dtype) for bound in bounds)
        part = (images - first) / (last - first)
        return (low + (high - low) * part - offset.astype(images.dtype)) / scale.astype(images.dtype)

    return shown


def _by_channel(name: str, value: Any, channels: int) -> np.ndarray:
    numbers = np.asarray(value, np.float32)
    if numbers.shape not in ((), (1,), (channels,)) or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: expected a number, or one for each of {channels} channels, got {value}")
    return numbers
