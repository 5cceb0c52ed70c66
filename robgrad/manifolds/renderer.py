"""The exact manifold of rendered images: all that a renderer makes of its codes."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.sparse.linalg import cg

from robgrad.manifolds.geometry import Manifold, TangentSpace, column_space

Decode = Callable[[Array, Array], Array]


class Bank(NamedTuple):
    """Images `[N, H, W, C]` of known labels `[N]` and codes `[N, z]`: where the search for an image's code starts."""

    labels: Array
    codes: Array
    images: Array


def nearest_code(decode: Decode, bank: Bank, image: Array, steps: int = 20) -> tuple[Array, Array]:
    """Label and code of the rendered image nearest to an image, at least locally.

    From the bank's nearest image Levenberg and Marquardt's steps on ||decode(label, z) - x||^2, within the bank's class
    and the box [-1, 1] of codes; a step that does not bring the image nearer is not taken.

    Args:
      decode: `(label, code)` to an image, differentiable in the code by forward mode.
      bank: where to start.
      image: `[H, W, C]`.
      steps: at most so many.
    """
    distances = jnp.sum((bank.images - image).reshape(len(bank.images), -1) ** 2, axis=1)
    start = jnp.argmin(distances)
    label, own = bank.labels[start], partial(decode, bank.labels[start])
    residual = lambda code: jnp.ravel(image - own(code))  # noqa: E731

    def step(_, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        code, error, damping = carry
        jacobian = jax.jacfwd(lambda z: jnp.ravel(own(z)))(code)
        normal, towards = jacobian.T @ jacobian, jacobian.T @ residual(code)
        scale = jnp.trace(normal) / code.size
        # Conjugate gradients, as LAPACK's batched solvers share XLA:CPU's threads with the programs that call them.
        move, _ = cg(lambda v: normal @ v + damping * scale * v, towards, maxiter=2 * code.size)
        moved = jnp.clip(code + move, -1.0, 1.0)
        new = jnp.sum(residual(moved) ** 2)
        nearer = new < error
        pick = lambda a, b: jnp.where(nearer, a, b)  # noqa: E731
        return pick(moved, code), pick(new, error), damping * jnp.where(nearer, 0.3, 10.0)

    code = bank.codes[start]
    code, _, _ = lax.fori_loop(0, steps, step, (code, jnp.sum(residual(code) ** 2), jnp.float32(1e-3)))
    return label, code


def renderer(decode: Decode, bank: Bank, steps: int = 20) -> Manifold:
    """The renderer's manifold: an image is projected to the nearest one that it can make, see `nearest_code`.

    The tangent space there is the column space of its Jacobian by the code, exact at images of the bank.
    """

    def project(image: Array) -> Array:
        return decode(*nearest_code(decode, bank, image, steps))

    def tangent(image: Array) -> TangentSpace:
        label, code = nearest_code(decode, bank, image, steps)
        jacobian = jax.jacfwd(lambda z: decode(label, z).ravel())(code)
        return column_space(jacobian)

    return Manifold(project, tangent)
