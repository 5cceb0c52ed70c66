"""PyTorch's core operators in JAX, by name, on arrays in PyTorch's order `[N, C, H, W]`.

Arguments are those of PyTorch's own schema. A rule raises `ValueError` for a use that it has no equal for. To add an
operator is to write its rule and name it in `RULES`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad.networks import layers, resampling

Rule = Callable[..., Any]


def _convolution(x, kernel, bias, stride, padding, dilation, transposed, output_padding, groups):
    axes = x.ndim - 2
    each = map(tuple, (stride, padding, dilation))
    stride, padding, dilation = (one * axes if len(one) == 1 else one for one in each)
    if kernel.ndim != x.ndim or axes not in (1, 2):
        raise ValueError(f"convolution: expected images or sequences, got {axes} axes of pixels")
    pads = [(pad, pad) for pad in padding]
    plain = groups == 1 and not transposed and x.ndim == 4 and {*dilation} == {1} and len({*stride}) == 1
    if plain:
        # By our own layer, which stays fast in the loops of attacks.
        images, taps = x.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0)
        found = layers.conv(images, taps, stride[0], pads).transpose(0, 3, 1, 2)
        return found if bias is None else found + bias.reshape(1, -1, 1, 1)
    if transposed:
        # Kernels [in, out / groups, ...] become [out, in / groups, ...], turned around.
        size, rest = kernel.shape[0] // groups, kernel.shape[1:]
        kernel = jnp.flip(kernel.reshape(groups, size, *rest), axis=(-1, -2)).swapaxes(1, 2)
        kernel = kernel.reshape(groups * rest[0], size, *rest[1:])
        reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
        pads = [(r - p, r - p + more) for r, p, more in zip(reach, padding, output_padding, strict=True)]
        options: dict[str, Any] = {"window_strides": (1,) * len(pads), "lhs_dilation": tuple(stride)}
    else:
        options = {"window_strides": tuple(stride)}
    names = ("NCHW", "OIHW", "NCHW") if x.ndim == 4 else ("NCH", "OIH", "NCH")
    found = lax.conv_general_dilated(
        x, kernel, padding=pads, rhs_dilation=tuple(dilation), dimension_numbers=names,
        feature_group_count=groups, **options,
    )  # fmt: skip
    return found if bias is None else found + bias.reshape(1, -1, *[1] * (x.ndim - 2))


def _batch_norm(x, weight, bias, mean, variance, momentum, epsilon):
    del momentum
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = lax.rsqrt(variance + epsilon) * (1.0 if weight is None else weight)
    found = (x - mean.reshape(shape)) * scale.reshape(shape)
    return (found if bias is None else found + bias.reshape(shape), None, None)


def _normalised(x: Array, axes: Sequence[int], epsilon: float) -> Array:
    centred = x - x.mean(axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred**2, axes, keepdims=True) + epsilon)


def _layer_norm(x, shape, weight, bias, epsilon):
    found = _normalised(x, tuple(range(-len(shape), 0)), epsilon)
    found = found if weight is None else found * weight
    return (found if bias is None else found + bias, None, None)


def _group_norm(x, weight, bias, batch, channels, pixels, groups, epsilon):
    del pixels
    parts = _normalised(x.reshape(batch, groups, -1), (-1,), epsilon).reshape(x.shape)
    shape = (1, channels, *[1] * (x.ndim - 2))
    parts = parts if weight is None else parts * weight.reshape(shape)
    return (parts if bias is None else parts + bias.reshape(shape), None, None)


def _attention(query, key, value, mask=None, dropout=0.0, causal=False, *, scale=None, **_):
    del dropout
    scores = jnp.einsum("...qd,...kd->...qk", query, key) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask
    return jnp.einsum("...qk,...kd->...qd", jax.nn.softmax(scores, axis=-1), value)


def _flash(query, key, value, dropout=0.0, causal=False, *, attn_mask=None, scale=None, **_):
    return (_attention(query, key, value, attn_mask, dropout, causal, scale=scale), None)


def _slice(x, axis=0, start=None, end=None, step=1):
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]


def _select(x, axis, index):
    return jnp.take(x, index % x.shape[axis], axis=axis)


def _split(x, sizes, axis=0):
    parts = [sizes] * (x.shape[axis] // sizes) if isinstance(sizes, int) else sizes
    return jnp.split(x, np.cumsum(parts)[: len(parts) - (sum(parts) == x.shape[axis])], axis)


def _expand(x, shape, **_):
    own = (*[1] * (len(shape) - x.ndim), *x.shape)
    return jnp.broadcast_to(x, [size if wanted == -1 else wanted for wanted, size in zip(shape, own, strict=True)])


def _pad(x, pads, value=0.0):
    each = [(pads[2 * place], pads[2 * place + 1]) for place in range(len(pads) // 2)][::-1]
    return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0)] * (x.ndim - len(each)) + [(*one, 0) for one in each])


def _reduced(function: Callable[..., Array]) -> Rule:
    def rule(x, axes=None, keepdim=False, **_):
        axes = None if axes is None or axes == [] else tuple(axes) if isinstance(axes, list | tuple) else axes
        return function(x, axis=axes, keepdims=keepdim)

    return rule


def _variance(x, axes=None, correction=1, keepdim=False):
    return jnp.var(x, tuple(axes) if axes else None, ddof=int(correction), keepdims=keepdim)


def _added(x, y, alpha=1):
    return x + alpha * y


def _subtracted(x, y, alpha=1):
    return x - alpha * y


def _clamped(x, low=None, high=None):
    return jnp.clip(x, low, high)


def _elu(x, alpha=1.0, scale=1.0, inner=1.0):
    return scale * jnp.where(x > 0, x, alpha * jnp.expm1(inner * jnp.minimum(x, 0.0)))


def _softplus(x, beta=1.0, threshold=20.0):
    return jnp.where(beta * x > threshold, x, jax.nn.softplus(beta * x) / beta)


def _typed(x, *_, dtype=None, **__):
    """The values in another kind of type, whole numbers, truth values or floating point; its precision stays ours."""
    kind = str(dtype).removeprefix("torch.")
    if dtype is None or ("float" in kind and jnp.issubdtype(x.dtype, jnp.floating)):
        return x
    return x.astype(jnp.float32 if "float" in kind else bool if kind == "bool" else jnp.int32)


def _dropout(x, share, train=False):
    del share
    if train:
        raise ValueError("dropout: expected it to be off in evaluation mode; give F.dropout training=self.training")
    return x


def _leaky(x, noise, lower=1 / 8, upper=1 / 3, training=False, *_):
    del noise
    if training:
        raise ValueError("rrelu: expected it in evaluation mode")
    return (jnp.where(x > 0, x, x * (lower + upper) / 2), None)


def _instance_norm(x, weight, bias, training, momentum, epsilon):
    del training, momentum
    axes = (0, *range(2, x.ndim))
    found = _normalised(x, axes, epsilon)
    shape = (1, -1, *[1] * (x.ndim - 2))
    found = found if weight is None else found * weight.reshape(shape)
    return (found if bias is None else found + bias.reshape(shape), None, None)


def _extreme(function: Callable[..., Array], place: Callable[..., Array]) -> Rule:
    """The greatest or least of an axis and where it is, or of all; the gradient of an axis goes to the first."""

    def rule(x, axis=None, keepdim=False):
        if axis is None:
            return function(x)
        where = place(x, axis=axis, keepdims=True)
        found = jnp.take_along_axis(x, where, axis)
        return (found, where) if keepdim else (found.squeeze(axis), where.squeeze(axis))

    return rule


def _top(x, count, axis=-1, largest=True, ordered=True):
    del ordered
    moved = jnp.moveaxis(x if largest else -x, axis, -1)
    found, where = lax.top_k(moved, count)
    return (jnp.moveaxis(found if largest else -found, -1, axis), jnp.moveaxis(where, -1, axis))


def _strided(x, shape, strides, offset=0):
    """A view by strides, where it only adds or drops axes of length 1: what pooling to one pixel is written as."""
    del strides
    if offset or [one for one in shape if one != 1] != [one for one in x.shape if one != 1]:
        raise ValueError(f"as_strided: expected a view of {list(x.shape)} that keeps its order, got {list(shape)}")
    return x.reshape(shape)


def _squeezed(x, axes=None):
    """Without axes of length 1: all, or those named that are."""
    named = range(x.ndim) if axes is None else np.atleast_1d(axes).tolist()
    return jnp.squeeze(x, tuple(axis for axis in named if x.shape[axis] == 1))


def _scattered(x, part, axis=0, start=None, end=None, step=1):
    return x.at[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)].set(part)


def _same(x, *_, **__):
    return x


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_native_batch_norm_legit": _instance_norm,
    "max_pool2d_with_indices": resampling.max_pool,
    "adaptive_max_pool2d": resampling.adaptive_max_pool,
    "avg_pool2d": resampling.avg_pool,
    "_adaptive_avg_pool2d": resampling.adaptive_avg_pool,
    "addmm": lambda bias, x, y, beta=1, alpha=1: beta * bias + alpha * (x @ y),
    "mm": jnp.matmul,
    "bmm": jnp.matmul,
    "matmul": jnp.matmul,
    "linear": lambda x, kernel, bias=None: x @ kernel.T + (0.0 if bias is None else bias),
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _flash,
    "_softmax": lambda x, axis, half=False: jax.nn.softmax(x, axis),
    "_log_softmax": lambda x, axis, half=False: jax.nn.log_softmax(x, axis),
    "relu": jax.nn.relu,
    "gelu": lambda x, approximate="none": jax.nn.gelu(x, approximate=approximate == "tanh"),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softplus": _softplus,
    "leaky_relu": lambda x, slope=0.01: jnp.where(x > 0, x, slope * x),
    "prelu": lambda x, slope: jnp.where(x > 0, x, slope.reshape(1, -1, *[1] * (x.ndim - 2)) * x),
    "_prelu_kernel": lambda x, slope: jnp.where(x > 0, x, slope * x),
    "elu": _elu,
    "hardtanh": lambda x, low=-1.0, high=1.0: jnp.clip(x, low, high),
    "hardswish": jax.nn.hard_swish,
    "hardsigmoid": jax.nn.hard_sigmoid,
    "erf": jax.scipy.special.erf,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "atan": jnp.arctan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "reciprocal": lambda x: 1 / x,
    "abs": jnp.abs,
    "neg": jnp.negative,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "pow": jnp.power,
    "add": _added,
    "sub": _subtracted,
    "rsub": lambda x, y, alpha=1: y - alpha * x,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "clamp": _clamped,
    "clamp_min": lambda x, low: jnp.maximum(x, low),
    "where": jnp.where,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "fmod": jnp.fmod,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "logical_not": jnp.logical_not,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_not": jnp.invert,
    "any": _reduced(jnp.any),
    "mean": _reduced(jnp.mean),
    "sum": _reduced(jnp.sum),
    "amax": _reduced(jnp.max),
    "amin": _reduced(jnp.min),
    "var": _variance,
    "max": _extreme(jnp.max, jnp.argmax),
    "min": _extreme(jnp.min, jnp.argmin),
    "argmax": lambda x, axis=None, keepdim=False: jnp.argmax(x, axis, keepdims=keepdim),
    "topk": _top,
    "cumsum": lambda x, axis, **_: jnp.cumsum(x, axis),
    "prod": _reduced(jnp.prod),
    "view": jnp.reshape,
    "reshape": jnp.reshape,
    "_unsafe_view": jnp.reshape,
    "permute": jnp.transpose,
    "transpose": jnp.swapaxes,
    "t": jnp.transpose,
    "unsqueeze": jnp.expand_dims,
    "squeeze": _squeezed,
    "expand": _expand,
    "cat": lambda parts, axis=0: jnp.concatenate(parts, axis),
    "stack": lambda parts, axis=0: jnp.stack(parts, axis),
    "slice": _slice,
    "select": _select,
    "split": _split,
    "split_with_sizes": _split,
    "chunk": lambda x, count, axis=0: _split(x, -(-x.shape[axis] // count), axis),
    "flip": jnp.flip,
    "repeat": jnp.tile,
    "roll": lambda x, shifts, axes: jnp.roll(x, shifts, axes),
    "constant_pad_nd": _pad,
    "upsample_nearest2d": resampling.nearest,
    "upsample_bilinear2d": resampling.bilinear,
    "as_strided": _strided,
    "slice_scatter": _scattered,
    "index_select": lambda x, axis, places: jnp.take(x, places, axis=axis),
    "copy": lambda x, source, *_: jnp.broadcast_to(source, x.shape).astype(x.dtype),
    "arange": lambda *limits, **_: jnp.arange(*limits),
    "scalar_tensor": lambda value, **_: jnp.asarray(value),
    "full": lambda shape, value, **_: jnp.full(tuple(shape), value),
    "full_like": lambda x, value, **_: jnp.full_like(x, value),
    "zeros_like": lambda x, **_: jnp.zeros_like(x),
    "ones_like": lambda x, **_: jnp.ones_like(x),
    "index": lambda x, places: x[tuple(slice(None) if one is None else one for one in places)],
    "dropout": _dropout,
    "native_dropout": lambda x, share, train=False: (_dropout(x, share, train), None),
    "rrelu_with_noise_functional": _leaky,
    "empty": lambda shape, **_: jnp.zeros(tuple(shape), jnp.float32),
    "_to_copy": _typed,
    "detach": lax.stop_gradient,
    "_assert_tensor_metadata": lambda *_, **__: None,
    **dict.fromkeys(("clone", "alias", "contiguous", "lift_fresh_copy"), _same),
}
