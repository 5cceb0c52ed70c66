"""The exact manifold of generated images: all that a decoder, for instance a renderer, makes of its codes."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.sparse.linalg import cg

from robgrad.data import DataError
from robgrad.data.calls import known
from robgrad.data.checks import checked_count
from robgrad.manifolds.geometry import Manifold, TangentSpace, column_space, decoder_jacobian
from robgrad.manifolds.neighbours import nearest

Decode = Callable[[Array, Array], Array]


class Bank(NamedTuple):
    """Images `[N, H, W, C]` of known labels `[N]` and codes `[N, z]`: where the search for an image's code starts."""

    labels: Array
    codes: Array
    images: Array


def nearest_code(decode: Decode, bank: Bank, image: Array, box: float = 1.0, steps: int = 10) -> tuple[Array, Array]:
    """Label and code of the generated image nearest to an image, at least locally.

    From the bank's nearest image Levenberg and Marquardt's steps on ||decode(label, z) - x||^2, within the bank's class
    and the box of codes; a step that does not bring the image nearer is not taken.

    Args:
      decode: `(label, code)` to an image, differentiable twice in the code by reverse mode.
      bank: where to start.
      image: `[H, W, C]`.
      box: largest absolute value of a code's components.
      steps: at most so many.

    Raises:
      DataError: if the image or the bank's are not floating point, of different shapes, or, where that is known, not
        finite; if the bank is empty, or has not a label and a code for each image.
      ValueError: if the box is not above 0, or there are no steps.
    """
    checked_count("step", steps)
    if not box > 0:
        raise ValueError(f"expected a box of codes above 0, or infinite, got {box}")
    counts = [len(part) for part in bank]
    if min(counts) < 1 or len({*counts}) > 1:
        raise DataError(f"expected a bank with a label, a code and an image each, got {counts} of them")
    if image.shape != bank.images.shape[1:]:
        raise DataError(f"expected an image of the bank's shape {list(bank.images.shape[1:])}, got {list(image.shape)}")
    for pixels in (image, bank.images):
        if not jnp.issubdtype(pixels.dtype, jnp.floating):
            raise DataError(f"expected floating-point images, got {pixels.dtype}; map bytes by data.scale")
        values = known(pixels)
        if values is not None and not np.isfinite(np.asarray(values)).all():
            raise DataError("expected finite pixels, got NaN or infinity")
    start = nearest(bank.images, image, 1)[0]
    label, own = bank.labels[start], partial(decode, bank.labels[start])
    residual = lambda code: jnp.ravel(image - own(code))  # noqa: E731

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, error, damping, step = carry
        # An image of the bank is there from the start; where damping has grown so far, no step brings it nearer.
        return (step < steps) & (error > 1e-10 * image.size) & (damping < 1e3)

    def turn(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        code, error, damping, step = carry
        jacobian = decoder_jacobian(own, code)
        normal, towards = jacobian.T @ jacobian, jacobian.T @ residual(code)
        scale = jnp.trace(normal) / code.size
        # Conjugate gradients, as LAPACK's batched solvers share XLA:CPU's threads with the programs that call them.
        move, _ = cg(lambda v: normal @ v + damping * scale * v, towards, maxiter=2 * code.size)
        moved = jnp.clip(code + move, -box, box)
        new = jnp.sum(residual(moved) ** 2)
        nearer = new < error
        pick = lambda a, b: jnp.where(nearer, a, b)  # noqa: E731
        return pick(moved, code), pick(new, error), damping * jnp.where(nearer, 0.3, 10.0), step + 1

    # The code in the type that steps towards the image give it.
    code = bank.codes[start].astype(jnp.promote_types(bank.codes.dtype, image.dtype))
    error = jnp.sum(residual(code) ** 2)
    carry = (code, error, jnp.asarray(1e-3, error.dtype), jnp.int32(0))
    return label, lax.while_loop(unfinished, turn, carry)[0]


def renderer(decode: Decode, bank: Bank, box: float = 1.0, steps: int = 10) -> Manifold:
    """The manifold of a renderer, or of another decoder: an image is projected to the nearest one that it can make.

    See `nearest_code`. The tangent space there is the column space of the Jacobian by the code, exact at images of the
    bank.
    """

    def project(image: Array) -> Array:
        return decode(*nearest_code(decode, bank, image, box, steps))

    def tangent(image: Array) -> TangentSpace:
        label, code = nearest_code(decode, bank, image, box, steps)
        return column_space(decoder_jacobian(partial(decode, label), code))

    return Manifold(project, tangent)
