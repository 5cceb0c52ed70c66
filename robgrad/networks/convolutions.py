"""Convolutions of networks that users bring, computed as robgrad's own layer does.

On a CPU the derivatives that JAX derives of `lax.conv_general_dilated` are slow in loops of attacks and of training:
PGD on four layers of `flax.linen.Conv` takes 4 to 19 times as long as on the same layers of `networks.Conv`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array, lax
from jax.extend import core

from robgrad.networks import layers


def with_fast_convolutions(function: Callable) -> Callable:
    """A function of arrays and pytrees of them whose plain convolutions are `layers.conv`; the same in all it returns.

    Plain ones are of images, neither grouped nor dilated, with one stride, in the function itself or in what it has
    compiled by `jax.jit`; those in loops and branches stay as they are, and all do where the backend is no CPU.
    Reverse mode alone goes through them, as through robgrad's own networks. Modules of Flax and Equinox, AutoAttack and
    `gradients.analyser` have this already; a function of one image that an attack is given by hand is worth it.
    """

    @functools.wraps(function)
    def run(*arguments):
        if jax.default_backend() != "cpu":
            return function(*arguments)
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        if not _has_plain(traced.jaxpr):
            return function(*arguments)
        found = _evaluated(traced.jaxpr, traced.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return run


def _is_plain(operation: core.JaxprEqn) -> bool:
    """Whether an operation is a convolution that `layers.conv` computes."""
    if operation.primitive is not lax.conv_general_dilated_p:
        return False
    given = operation.params
    image: Any = operation.invars[0].aval
    return (
        image.ndim == 4
        and len({*given["window_strides"]}) == 1
        and {*given["lhs_dilation"], *given["rhs_dilation"]} == {1}
        and given["feature_group_count"] == given["batch_group_count"] == 1
        and given["preferred_element_type"] in (None, image.dtype)
    )


def _compiled(operation: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The program within an operation that is a call of `jax.jit`."""
    return operation.params["jaxpr"] if operation.primitive.name in ("jit", "pjit") else None


def _has_plain(program: core.Jaxpr) -> bool:
    inner = [one for one in map(_compiled, program.eqns) if one is not None]
    return any(map(_is_plain, program.eqns)) or any(_has_plain(one.jaxpr) for one in inner)


def _evaluated(program: core.Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """What a program returns, operation by operation."""
    known = dict(zip((*program.constvars, *program.invars), (*constants, *arguments), strict=True))
    value = lambda one: one.val if isinstance(one, core.Literal) else known[one]  # noqa: E731
    for operation in program.eqns:
        values, inner = [value(one) for one in operation.invars], _compiled(operation)
        if _is_plain(operation):
            found: Any = [_convolved(operation.params, *values)]
        elif inner is not None and _has_plain(inner.jaxpr):
            found = _evaluated(inner.jaxpr, inner.consts, values)
        else:
            options = operation.primitive.get_bind_params(operation.params)
            found = operation.primitive.bind(*values, **options)
            found = found if operation.primitive.multiple_results else [found]
        known |= zip(operation.outvars, found, strict=True)
    return [value(one) for one in program.outvars]


def _convolved(given: dict[str, Any], images: Array, kernel: Array) -> Array:
    """The convolution by the layer, in whatever layout it is asked for."""
    of_images, of_kernel, of_result = given["dimension_numbers"]
    # Batch, features and pixels, to pixels before features; a kernel has outputs, inputs and pixels.
    images = images.transpose(of_images[0], *of_images[2:], of_images[1])
    kernel = kernel.transpose(*of_kernel[2:], of_kernel[1], of_kernel[0])
    found = layers.conv(images, kernel, given["window_strides"][0], given["padding"])
    places = (of_result[0], *of_result[2:], of_result[1])
    return found.transpose([places.index(axis) for axis in range(4)])
