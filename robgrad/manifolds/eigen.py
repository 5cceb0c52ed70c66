"""Eigenvectors of symmetric matrices and operators, by plain array operations that batch well.

LAPACK's batched decompositions are kept out for the reason given at `geometry.column_space`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad.attacks import length

_SWEEPS = 15


def symmetric_eigen(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues `[n]`, from large to small, and orthonormal eigenvectors `[n, n]`, columns, of a symmetric matrix.

    Jacobi's method, all pairs of a round rotated at once (Golub and Van Loan, 2013, section 8.5): exact to rounding.
    Sweeps over all pairs go on until nothing is left beside the diagonal; from then on they gain digits quadratically,
    so that 15 are never needed. For matrices of some hundred rows at most.
    """
    size, even = len(matrix), len(matrix) + len(matrix) % 2
    half = even // 2
    # The tournament in which every row meets every other: the first stays, the others move on by one place.
    following = np.array([0, half, *range(1, half - 1), *range(half + 1, even), half - 1] if half > 1 else [0, 1])
    padded = jnp.zeros((even, even), matrix.dtype).at[:size, :size].set(matrix)
    total = jnp.sum(padded**2)

    def turned(rows: Array, cosine: Array, sine: Array) -> Array:
        top, bottom = rows[:half], rows[half:]
        cosine, sine = cosine[:, None], sine[:, None]
        return jnp.concatenate([cosine * top - sine * bottom, sine * top + cosine * bottom])[following]

    def meet(_, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        held, vectors = carry
        diagonal = jnp.diagonal(held)
        across = jnp.diagonal(held[:half, half:])
        gap = diagonal[half:] - diagonal[:half]
        # The smaller root of t^2 + 2 t gap / (2 across) - 1 = 0 is the rotation's tangent.
        doubled = 2 * across
        root = jnp.abs(gap) + jnp.sqrt(gap**2 + doubled**2)
        tangent = jnp.where(root > 0, doubled * jnp.where(gap < 0, -1.0, 1.0) / jnp.where(root > 0, root, 1.0), 0.0)
        cosine = 1 / jnp.sqrt(1 + tangent**2)
        sine = tangent * cosine
        held = turned(turned(held, cosine, sine).T, cosine, sine).T
        return held, turned(vectors, cosine, sine)

    def beside(held: Array) -> Array:
        return jnp.sum(jnp.where(jnp.eye(even, dtype=bool), 0.0, held) ** 2)

    def unfinished(carry: tuple[Array, tuple[Array, Array]]) -> Array:
        sweep, (held, _) = carry
        return (sweep < _SWEEPS) & (beside(held) > jnp.finfo(matrix.dtype).eps ** 2 * total)

    def sweep(carry: tuple[Array, tuple[Array, Array]]) -> tuple[Array, tuple[Array, Array]]:
        return carry[0] + 1, lax.fori_loop(0, max(even - 1, 1), meet, carry[1])

    start = (jnp.int32(0), (padded, jnp.eye(even, dtype=matrix.dtype)))
    held, vectors = lax.while_loop(unfinished, sweep, start)[1]
    values = jnp.diagonal(held)
    # The row that was filled in is an eigenvector of its own: last, whatever the others' signs.
    own = jnp.abs(vectors[:, size:]).sum(1) < 0.5
    order = jnp.argsort(jnp.where(own, -values, jnp.inf))[:size]
    return values[order], vectors[order, :size].T


def leading_directions(
    operator: Callable[[Array], Array], size: int, count: int, iterations: int = 10, dtype: Any = jnp.float32
) -> tuple[Array, Array]:
    """The eigenvectors of largest eigenvalue of a symmetric operator, as far as orthogonal iteration has come.

    A block of `count` directions is mapped and orthonormalised in turn (Golub and Van Loan, 2013, section 8.2.4), then
    the operator within it is diagonalised exactly (Rayleigh and Ritz). What is left of the wrong directions
    shrinks with every turn by the ratio of the eigenvalues outside and within the block: ask for some more than are
    wanted.

    Args:
      operator: a block `[size, count]` to its image, linear and symmetric or nearly so, with no negative eigenvalue as
        large as the leading ones.
      size: dimensions of the space.
      count: directions wanted, at most `size`.
      iterations: turns.
      dtype: of the block.

    Returns:
      Orthonormal columns `[size, count]`, and their Rayleigh quotients `[count]` from large to small.
    """

    def turn(_, block: Array) -> Array:
        return _orthonormal(operator(block))

    start = _orthonormal(jax.random.normal(jax.random.key(0), (size, count), dtype))
    block = lax.fori_loop(0, iterations, turn, start)
    within = block.T @ operator(block)
    within = (within + within.T) / 2
    quotients, turns = symmetric_eigen(within)
    return block @ turns, quotients


def _orthonormal(block: Array) -> Array:
    """Gram and Schmidt's orthonormalisation of the columns, each orthogonalised twice; zero where nothing is left."""

    def step(index: Array, basis: Array) -> Array:
        column = block[:, index]
        before = length(column)
        for _ in range(2):
            column = column - basis @ (basis.T @ column)
        norm = length(column)
        unit = column / jnp.where(norm > 0, norm, 1.0)
        return basis.at[:, index].set(jnp.where(norm > 1e-6 * before, unit, 0.0))

    return lax.fori_loop(0, block.shape[1], step, jnp.zeros_like(block))
