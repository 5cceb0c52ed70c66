"""Leading eigenvectors of a symmetric operator, by plain array operations that batch well."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.attacks import length


def leading_directions(
    operator: Callable[[Array], Array], size: int, count: int, iterations: int = 10
) -> tuple[Array, Array]:
    """The eigenvectors of largest eigenvalue of a symmetric operator, as far as orthogonal iteration has come.

    A block of `count` directions is mapped and orthonormalised in turn (Golub and Van Loan, 2013, section 8.2.4), then
    the operator within it is diagonalised in the same way (Rayleigh and Ritz). What is left of the wrong directions
    shrinks with every turn by the ratio of the eigenvalues outside and within the block: ask for some more than are
    wanted. LAPACK is kept out for the reason given at `column_space`.

    Args:
      operator: a block `[size, count]` to its image, linear and symmetric or nearly so, with no negative eigenvalue as
        large as the leading ones.
      size: dimensions of the space.
      count: directions wanted, at most `size`.
      iterations: turns.

    Returns:
      Orthonormal columns `[size, count]`, and their Rayleigh quotients `[count]` from large to small.
    """

    def turn(_, block: Array) -> Array:
        return _orthonormal(operator(block))

    start = _orthonormal(jax.random.normal(jax.random.key(0), (size, count)))
    block = lax.fori_loop(0, iterations, turn, start)
    within = block.T @ operator(block)
    within = (within + within.T) / 2
    turns = lax.fori_loop(0, 100, lambda _, rotation: _orthonormal(within @ rotation), jnp.eye(count))
    quotients = jnp.sum(turns * (within @ turns), axis=0)
    order = jnp.argsort(-quotients)
    return block @ turns[:, order], quotients[order]


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
