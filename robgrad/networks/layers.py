"""The convolution, its transpose and the max-pool that every network here is made of.

XLA:CPU has a fast convolution for one case only: an NHWC image, an HWIO kernel, an NHWC result and
nothing dilated. The derivatives that JAX derives of a convolution ask for other layouts, which outside
of loops are rewritten into the fast one and inside `fori_loop`, `scan` and `map` are not; there, and
wherever zeros are dilated in, they fall to kernels tens of times slower. So here strided convolutions (the
derivatives of those with many channels) and transposed ones become dense ones by moving pixels between
space and channels, and both derivatives of a dense convolution are written out as dense convolutions, or
as matrix products where those are slow; on a CPU the convolution itself is a product where few channels
come out of it (as in the derivative of a first layer by the image) or few numbers go into a place of a small
result (as in the first layer of small grey images). A loop of attack or training steps then costs what its
steps cost.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array, lax

Padding = Literal["SAME", "VALID", "CENTRED"]
Pads = tuple[tuple[int, int], tuple[int, int]]
# Where XLA:CPU's convolution is slower than products (measured, batches of 100): few channels come out, as in the
# derivative of a first layer by the image; or few numbers are seen at a place and the result is small.
_FEW_OUTPUTS, _FEW_PLACES, _FEW_TAPS, _SMALL = 4, 36, 18, 4096
# Channels from which a strided convolution is faster as it is than as a dense one, which has zeros in its kernel
# (measured: half the time from 16 on; with 1 or 3 up to twice the time).
_MANY_INPUTS = 8


def conv(images: Array, kernel: Array, stride: int = 1, padding: Padding | Sequence[tuple[int, int]] = "SAME") -> Array:
    """Cross-correlates images with a kernel, fast in compiled loops under reverse differentiation.

    Equals `lax.conv_general_dilated` in NHWC and HWIO layout, in value and in derivatives of any order
    by reverse mode. Forward mode (`jax.jvp`, `jax.jacfwd`) raises, as for any `jax.custom_vjp`;
    `robgrad.manifolds.decoder_jacobian` shows the way around.

    Args:
      images: `[B, H, W, I]`.
      kernel: `[kh, kw, I, O]`.
      stride: step of the window along height and width.
      padding: `"SAME"`, `"VALID"`, or `"CENTRED"`, as many zeros before the image as behind it, half a window less a
        half: PyTorch's `padding=k // 2`, which differs from `"SAME"` where the stride is above 1. Or zeros before and
        behind, for height and width.

    Returns:
      `[B, H', W', O]`.
    """
    if padding == "CENTRED":
        pads: Sequence[tuple[int, int]] = [((window - 1) // 2, (window - 1) // 2) for window in kernel.shape[:2]]
    elif isinstance(padding, str):
        pads = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], (stride, stride), padding)
    else:
        pads = padding
    if stride > 1 and kernel.shape[:2] == (1, 1):
        # A window of one pixel sees every stride-th alone.
        images, pads, stride = _fill(images, ((0, 0), *pads, (0, 0)))[:, ::stride, ::stride], ((0, 0), (0, 0)), 1
    if stride == 1:
        return _dense_conv(_static(pads), images, kernel)
    if jax.default_backend() == "cpu" and kernel.shape[2] >= _MANY_INPUTS:
        return _strided_conv(stride, _static(pads), images, kernel)
    return _in_blocks(stride, _static(pads), images, kernel)


def conv_transpose(images: Array, kernel: Array, stride: int = 1, padding: Padding = "SAME") -> Array:
    """Transposed convolution ('deconvolution'): the image is spread out by `stride`, then convolved.

    Equals `lax.conv_transpose` in NHWC and HWIO layout (the kernel is not flipped, and its last axis is
    the output's); derivatives as for `conv`.

    Args:
      images: `[B, H, W, I]`.
      kernel: `[kh, kw, I, O]`.
      stride: factor by which height and width grow.
      padding: `"SAME"` (height becomes `H * stride`) or `"VALID"` (`H * stride + max(kh - stride, 0)`).

    Returns:
      `[B, H', W', O]`.
    """
    pads = [_transposed_pads(window, stride, padding) for window in kernel.shape[:2]]
    if stride == 1:
        return _dense_conv(_static(pads), images, kernel)
    # Output pixel y = stride * q + r - shift sees the kernel's taps stride * t + stride - 1 - r, on image
    # pixels q + t - low, for every r alike: so q is the place and r the channel of a dense convolution.
    shifts = [(-1 - low) % stride for low, _ in pads]
    lows = [(low + shift) // stride for (low, _), shift in zip(pads, shifts, strict=True)]
    blocks = [-(-window // stride) for window in kernel.shape[:2]]
    sizes = [
        (size - 1) * stride + 2 + sum(pad) - window
        for size, window, pad in zip(images.shape[1:3], kernel.shape[:2], pads, strict=True)
    ]
    dense_pads = [
        (low, -(-(output + shift) // stride) + block - 1 - size - low)
        for size, output, shift, low, block in zip(images.shape[1:3], sizes, shifts, lows, blocks, strict=True)
    ]
    missing = [(0, block * stride - window) for block, window in zip(blocks, kernel.shape[:2], strict=True)]
    inputs, features = kernel.shape[2:]
    phases = _fill(kernel, (*missing, (0, 0), (0, 0))).reshape(blocks[0], stride, blocks[1], stride, inputs, features)
    phases = phases[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5).reshape(*blocks, inputs, -1)
    spread = _to_space(_dense_conv(_static(dense_pads), images, phases), stride)
    (top, left), (height, width) = shifts, sizes
    return spread[:, top : top + height, left : left + width]


@jax.custom_vjp
def add_bias(activations: Array, bias: Array) -> Array:
    """Adds a bias `[C]` to `[..., C]`; its derivative is a product with ones, since XLA reduces columns slowly."""
    return activations + bias


def _add_bias_forward(activations: Array, bias: Array) -> tuple[Array, None]:
    return add_bias(activations, bias), None


def _add_bias_backward(_: None, cotangent: Array) -> tuple[Array, Array]:
    rows = cotangent.reshape(-1, cotangent.shape[-1])
    return cotangent, jnp.ones(len(rows), rows.dtype) @ rows


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


def max_pool(images: Array, window: int = 2) -> Array:
    """Maximum over disjoint square windows; rows and columns that fill no window are dropped.

    The derivative goes to the first maximum of a window in row-major order, as with
    `lax.reduce_window` and in PyTorch, but its backward pass is a chain of selections instead of
    XLA's slow select-and-scatter. NaN propagates.

    Args:
      images: `[B, H, W, C]`.
      window: side and stride of the window.

    Returns:
      `[B, H // window, W // window, C]`.
    """
    height, width = (size // window * window for size in images.shape[1:3])
    corners = [images[:, i:height:window, j:width:window] for i in range(window) for j in range(window)]
    largest = corners[0]
    for corner in corners[1:]:
        largest = jnp.where((corner > largest) | jnp.isnan(corner), corner, largest)
    return largest


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dense_conv(pads: Pads, images: Array, kernel: Array) -> Array:
    height, width, inputs, outputs = kernel.shape
    if jax.default_backend() == "cpu":
        if outputs <= _FEW_OUTPUTS and height * width <= _FEW_PLACES:
            return _overlap_added(pads, images, kernel)
        if height * width * inputs <= _FEW_TAPS and math.prod(images.shape[1:3]) * outputs <= _SMALL:
            return _of_patches(pads, images, kernel)
    return lax.conv_general_dilated(images, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _overlap_added(pads: Pads, images: Array, kernel: Array) -> Array:
    """The convolution as one product for all taps of each pixel, then a sum of shifted pictures, one a tap."""
    (top, bottom), (left, right) = pads
    products = jnp.tensordot(images, kernel, axes=((3,), (2,)))
    shifted = [
        _fill(products[:, :, :, row, column], ((0, 0), (top - row, below), (left - column, beyond), (0, 0)))
        for row, below in enumerate(range(bottom - kernel.shape[0] + 1, bottom + 1))
        for column, beyond in enumerate(range(right - kernel.shape[1] + 1, right + 1))
    ]
    return sum(shifted[1:], shifted[0])


def _of_patches(pads: Pads, images: Array, kernel: Array) -> Array:
    """The convolution as one product of what the window sees at each place."""
    filled, windows = _fill(images, ((0, 0), *pads, (0, 0))), kernel.shape[:2]
    height, width = (size - window + 1 for size, window in zip(filled.shape[1:3], windows, strict=True))
    places = itertools.product(*map(range, windows))
    seen = [filled[:, row : row + height, column : column + width] for row, column in places]
    return jnp.concatenate(seen, axis=3) @ kernel.reshape(-1, kernel.shape[3])


def _forward(pads: Pads, images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dense_conv(pads, images, kernel), (images, kernel)


def _backward(pads: Pads, residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    """Both derivatives, made of what differentiates as well again."""
    images, kernel = residuals
    windows = kernel.shape[:2]
    mirrored = [(window - 1 - low, window - 1 - high) for window, (low, high) in zip(windows, pads, strict=True)]
    d_images = _dense_conv(_static(mirrored), cotangent, kernel[::-1, ::-1].swapaxes(2, 3))
    if cotangent.shape[1] <= images.shape[1] and cotangent.shape[2] <= images.shape[2]:
        # A convolution again: it contracts over the batch, so images become channels and channels images.
        d_kernel = _dense_conv(pads, images.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3))
        return d_images, d_kernel.transpose(1, 2, 0, 3)
    # That would slide a window larger than the image, which is slow: one matrix product a row of taps instead.
    filled = _fill(cotangent, ((0, 0), *mirrored, (0, 0)))
    height, width = images.shape[1:3]
    rows = []
    for row in range(windows[0]):
        taps = [filled[:, row : row + height, column : column + width] for column in range(windows[1])]
        rows.append(jnp.tensordot(images, jnp.stack(taps, axis=3), axes=((0, 1, 2), (0, 1, 2))))
    return d_images, jnp.stack(rows)[::-1, :, ::-1].transpose(0, 2, 1, 3)


_dense_conv.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _strided_conv(stride: int, pads: Pads, images: Array, kernel: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(images, kernel, (stride, stride), pads, dimension_numbers=layout)


def _strided_forward(stride: int, pads: Pads, images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _strided_conv(stride, pads, images, kernel), (images, kernel)


def _strided_backward(stride: int, pads: Pads, residuals: tuple[Array, Array], cotangent: Array):
    return jax.vjp(partial(_in_blocks, stride, pads), *residuals)[1](cotangent)


_strided_conv.defvjp(_strided_forward, _strided_backward)


def _in_blocks(stride: int, pads: Pads, images: Array, kernel: Array) -> Array:
    """A strided convolution as a dense one of blocks of stride x stride pixels, each the channels of one pixel."""
    # The kernel filled up with zeros to whole blocks, and the image to what it covers.
    blocks = [-(-window // stride) for window in kernel.shape[:2]]
    outputs = [
        (size + low + high - window) // stride + 1
        for size, window, (low, high) in zip(images.shape[1:3], kernel.shape[:2], pads, strict=True)
    ]
    fills = [
        (low, (output - 1 + block) * stride - size - low)
        for size, output, block, (low, _) in zip(images.shape[1:3], outputs, blocks, pads, strict=True)
    ]
    images = _to_channels(_fill(images, ((0, 0), *fills, (0, 0))), stride)
    missing = [(0, block * stride - window) for block, window in zip(blocks, kernel.shape[:2], strict=True)]
    kernel = _to_channels(_fill(kernel, (*missing, (0, 0), (0, 0))).transpose(3, 0, 1, 2), stride).transpose(1, 2, 3, 0)
    return _dense_conv(((0, 0), (0, 0)), images, kernel)


def _to_channels(images: Array, stride: int) -> Array:
    """Moves each block of stride x stride pixels to the channels of one: `[B, H, W, C]` to `[B, H/s, W/s, s*s*C]`."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // stride, stride, width // stride, stride, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // stride, width // stride, -1)


def _to_space(images: Array, stride: int) -> Array:
    """The inverse of `_to_channels`."""
    batch, height, width, _ = images.shape
    blocks = images.reshape(batch, height, width, stride, stride, -1).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, height * stride, width * stride, -1)


def _fill(array: Array, pads: Sequence[tuple[int, int]]) -> Array:
    """Pads with zeros; negative pads crop."""
    return lax.pad(array, jnp.zeros((), array.dtype), [(low, high, 0) for low, high in pads])


def _transposed_pads(window: int, stride: int, padding: Padding) -> tuple[int, int]:
    if padding == "VALID":
        return window - 1, max(window, stride) - 1
    total = window + stride - 2
    low = window - 1 if stride > window - 1 else -(-total // 2)
    return low, total - low


def _static(pads: Sequence[tuple[int, int]]) -> Pads:
    (top, bottom), (left, right) = pads
    return (int(top), int(bottom)), (int(left), int(right))
