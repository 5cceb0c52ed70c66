"""PyTorch's pooling and resizing in JAX, on arrays `[N, C, H, W]`; arguments are those of PyTorch's own schema."""

import functools
import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def _windows(x, size, stride, padding, ceil, dilation=(1, 1)):
    """Window, strides and pads of a pooling over the last two axes, and how far the pads reach beyond PyTorch's."""
    size, padding = _pair(size), _pair(padding)
    stride = _pair(stride) if stride else size
    over, reach = [], [d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)]
    for length, k, s, p in zip(x.shape[-2:], reach, stride, padding, strict=True):
        count = (math.ceil if ceil else math.floor)((length + 2 * p - k) / s) + 1
        # A last window that would begin beyond the image and its left padding is left out.
        count -= ceil and (count - 1) * s >= length + p
        over.append(max(0, (count - 1) * s + k - length - 2 * p))
    pads = [(0, 0)] * (x.ndim - 2) + [(p, p + more) for p, more in zip(padding, over, strict=True)]
    return (*[1] * (x.ndim - 2), *size), (*[1] * (x.ndim - 2), *stride), pads, padding


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return (value[0], value[-1])


def max_pool(x, size, stride=(), padding=(0, 0), dilation=(1, 1), ceil=False):
    """The greatest of each window, and None in place of where it is."""
    dilation = _pair(dilation)
    window, strides, pads, _ = _windows(x, size, stride, padding, ceil, dilation)
    if dilation == (1, 1):
        return (lax.reduce_window(x, -jnp.inf, lax.max, window, strides, pads), None)
    # JAX differentiates no window with holes: the greatest of shifted pictures.
    filled = jnp.pad(x, pads, constant_values=-jnp.inf)
    reach = [d * (k - 1) for d, k in zip(dilation, window[-2:], strict=True)]
    ends = [length - r for length, r in zip(filled.shape[-2:], reach, strict=True)]
    places = itertools.product(*(range(0, r + 1, d) for r, d in zip(reach, dilation, strict=True)))
    shifted = [
        filled[..., row : row + ends[0] : strides[-2], column : column + ends[1] : strides[-1]]
        for row, column in places
    ]
    return (functools.reduce(jnp.maximum, shifted), None)


def avg_pool(x, size, stride=(), padding=(0, 0), ceil=False, count_include_pad=True, divisor_override=None):
    """The mean of each window, with or without its padding."""
    window, strides, pads, padding = _windows(x, size, stride, padding, ceil)
    total = lax.reduce_window(x, 0.0, lax.add, window, strides, pads)
    if divisor_override:
        return total / divisor_override
    ones = jnp.ones((1,) * (x.ndim - 2) + x.shape[-2:], x.dtype)
    if count_include_pad:
        ones = jnp.pad(ones, [(0, 0)] * (x.ndim - 2) + [(p, p) for p in padding], constant_values=1)
        pads = [(0, high - p) for (_, high), p in zip(pads, (*[0] * (x.ndim - 2), *padding), strict=True)]
    return total / lax.reduce_window(ones, 0.0, lax.add, window, strides, pads)


def adaptive_avg_pool(x, size):
    """Means of as many cells as are wanted, which may overlap."""

    def means(length: int, count: int) -> np.ndarray:
        rows = np.zeros((count, length), np.float32)
        for place in range(count):
            first, last = place * length // count, -(-(place + 1) * length // count)
            rows[place, first:last] = 1 / (last - first)
        return rows

    rows, columns = (means(length, count) for length, count in zip(x.shape[-2:], size, strict=True))
    return jnp.einsum("...hw,ih,jw->...ij", x, rows.astype(x.dtype), columns.astype(x.dtype))


def _steps(x, size, factors) -> list[tuple[int, int, np.float32]]:
    """Of both axes the pixels there are, those wanted, and the former for one of the latter: by the factor if given."""
    factors = factors if factors and None not in factors else (None, None)
    size = size or [math.floor(length * by) for length, by in zip(x.shape[-2:], factors, strict=True)]
    each = zip(x.shape[-2:], size, factors, strict=True)
    return [(length, count, np.float32(1 / by if by else length / count)) for length, count, by in each]


def nearest(x, size=None, factors=None, *more):
    """Each pixel wanted is the one that lies there; places are counted by the factor, where it is given."""
    factors = (factors, *more) if isinstance(factors, float) else factors
    rows, columns = (
        np.minimum(np.floor(np.arange(count, dtype=np.float32) * step).astype(int), length - 1)
        for length, count, step in _steps(x, size, factors)
    )
    return x[..., rows, :][..., columns]


def bilinear(x, size=None, align_corners=False, factors=None, *more):
    """Each pixel wanted is between its neighbours; places as for `nearest`, or from corner to corner."""
    factors = (factors, *more) if isinstance(factors, float) else factors
    for axis, (length, count, step) in zip((-2, -1), _steps(x, size, factors), strict=True):
        places = np.arange(count, dtype=np.float32)
        if align_corners:
            places = places * np.float32((length - 1) / max(count - 1, 1))
        else:
            places = np.maximum((places + 0.5) * step - 0.5, 0.0)
        lower = np.minimum(places.astype(int), length - 1)
        upper, shape = np.minimum(lower + 1, length - 1), (-1, 1) if axis == -2 else (-1,)
        share = jnp.asarray((places - lower).reshape(shape), x.dtype)
        x = jnp.take(x, lower, axis) * (1 - share) + jnp.take(x, upper, axis) * share
    return x


def adaptive_max_pool(x, size):
    """The greatest of each of as many cells as are wanted."""

    def cut(values: Array, count: int, axis: int) -> Array:
        length = values.shape[axis]
        ends = [(place * length // count, -(-(place + 1) * length // count)) for place in range(count)]
        parts = [lax.slice_in_dim(values, first, last, axis=axis).max(axis) for first, last in ends]
        return jnp.stack(parts, axis)

    return (cut(cut(x, size[0], x.ndim - 2), size[1], x.ndim - 1), None)
