"""Square attack (Andriushchenko, Croce, Flammarion and Hein, 2020): random search by squares, scores alone."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from robgrad.attacks.losses import cw_margin
from robgrad.attacks.norms import L1, L2, LINF, Norm, l1_within, norm_named
from robgrad.attacks.search import Goal, Search
from robgrad.data import PIXEL_RANGE
from robgrad.data.checks import Range, checked_count, checked_finite_range, checked_range, clipped

# Queries after which the share of pixels in a square is halved once more.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Guess(NamedTuple):
    """Where one image's search stands.

    Attributes:
      point, margin: the best image and its margin loss.
      fallen: whether it reaches the goal.
      queries_made: queries made.
      key: of the rest.
    """

    point: Array
    margin: Array
    fallen: Array
    queries_made: Array
    key: Array


def square(
    norm: Norm | str,
    queries: int = 5000,
    *,
    share: float = 0.8,
    pixel_range: Range = PIXEL_RANGE,
) -> Search:
    """Builds the Square attack: changes within squares, kept where they raise the margin max_{j != y} z_j - z_y.

    l-inf: starts at vertical stripes of +-epsilon; a square of one colour of +-2 epsilon is added and clipped to the
    ball. l2: starts at 5 x 5 bumps; a window's perturbation is turned towards a random bump pair and given the length
    of another window's, which is emptied. The side of a square is the root of p pixels, p halved after 10, 50, 200,
    500, 1000, 2000, 4000, 6000 and 8000 queries. Windows are drawn for each image by itself. l1 (Croce and Hein,
    2021): as l2, with steeper bumps and lengths in l1, projected onto the intersection of the ball and the pixel range.

    Args:
      norm: l1, l2 or l-inf.
      queries: steps, one evaluation of the network each.
      share: p at the start.
      pixel_range: smallest and largest value of a pixel.

    Raises:
      ValueError: for another norm, no queries, or, in l1 and l2, a pixel range without an end.
    """
    norm, pixel_range = norm_named(norm), checked_range(pixel_range)
    if norm not in (L1, L2, LINF):
        raise ValueError("expected the l1, the l2 or the l-inf norm: the Square attack has no others")
    if norm is not LINF:
        checked_finite_range(pixel_range)
    checked_count("query", queries)
    begin, change = (_stripes, _add_square) if norm is LINF else (partial(_bumps, norm), partial(_move_bump, norm))

    def radius(goal: Goal) -> Array:
        """Epsilon, or the length of the way across all pixels, beyond which no ball grows."""
        low, high = (jnp.asarray(bound, goal.image.dtype) for bound in pixel_range)
        return jnp.minimum(goal.epsilon, norm.length(jnp.broadcast_to(high - low, goal.image.shape)))

    def within(goal: Goal, perturbation: Array) -> Array:
        if norm is L1:
            perturbation = l1_within(goal.image, perturbation, radius(goal), pixel_range)
        return clipped(goal.image + norm.project(perturbation, radius(goal)), pixel_range)

    def seen_at(goal: Goal, point: Array) -> tuple[Array, Array]:
        """The margin, highest where the goal is reached by what is not finite; and whether it is reached."""
        logits = goal.logits_fn(point)
        margin, fallen = cw_margin(logits, goal.label), goal.reached(logits)
        return jnp.where(jnp.isnan(margin), jnp.where(fallen, jnp.inf, -jnp.inf), margin), fallen

    def start(key: Array, goal: Goal) -> Guess:
        if goal.image.ndim != 3:
            raise ValueError(f"expected an image [H, W, C], which has squares, got {list(goal.image.shape)}")
        now, rest = jax.random.split(key)
        point = within(goal, begin(now, goal.image, radius(goal)))
        return Guess(point, *seen_at(goal, point), jnp.int32(0), rest)

    def step(goal: Goal, now: Guess) -> Guess:
        key, rest = jax.random.split(now.key)
        halvings = jnp.sum(now.queries_made > jnp.array(HALVINGS))
        pixels = share / 2.0**halvings * goal.image.shape[0] * goal.image.shape[1]
        side = jnp.round(jnp.sqrt(pixels)).astype(jnp.int32)
        point = within(goal, change(key, now.point - goal.image, radius(goal), side))
        margin, fallen = seen_at(goal, point)
        better = margin > now.margin
        pick = lambda new, old: jnp.where(better, new, old)  # noqa: E731
        return Guess(
            pick(point, now.point), pick(margin, now.margin), pick(fallen, now.fallen), now.queries_made + 1, rest
        )

    def end(state: Guess) -> tuple[Array, Array]:
        return state.point, state.fallen

    return Search(start, step, queries, end, norm, pixel_range)


def _signs(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.choice(key, jnp.array([-1.0, 1.0], dtype), shape)


def _stripes(key: Array, image: Array, epsilon: Array) -> Array:
    return epsilon * _signs(key, (1, *image.shape[1:]), image.dtype) * jnp.ones_like(image)


def _window(key: Array, shape, side: Array) -> tuple[Array, Array]:
    """Row and column of each pixel within a random square of a side that lies in the image."""
    rows, columns = jax.random.split(key)
    top = jax.random.randint(rows, (), 0, jnp.maximum(shape[0] - side, 0) + 1)
    left = jax.random.randint(columns, (), 0, jnp.maximum(shape[1] - side, 0) + 1)
    return jnp.arange(shape[0])[:, None] - top, jnp.arange(shape[1])[None, :] - left


def _inside(window: tuple[Array, Array], side: Array) -> Array:
    row, column = window
    return ((row >= 0) & (row < side) & (column >= 0) & (column < side))[..., None]


def _add_square(key: Array, perturbation: Array, epsilon: Array, side: Array) -> Array:
    places, colours = jax.random.split(key)
    shape = perturbation.shape
    side = jnp.clip(side, 1, min(shape[:2]) - 1 or 1)
    square = 2 * epsilon * _signs(colours, shape[-1:], perturbation.dtype)
    return perturbation + jnp.where(_inside(_window(places, shape, side), side), square, 0.0)


def _bump(norm: Norm, row: Array, column: Array, height: Array, width: Array, dtype: Any) -> Array:
    """Nested squares around the middle of a rectangle, 1/k^2 (in l1 1/k^4) summed from outside in; of length 1."""
    distance = jnp.maximum(jnp.abs(row - height // 2), jnp.abs(column - width // 2))
    most = jnp.maximum(height // 2, width // 2) + 1
    table = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, 66.0) ** (4 if norm is L1 else 2))])
    heights = jnp.asarray(table, dtype)
    value = heights[jnp.clip(most, 0, 65)] - heights[jnp.clip(distance, 0, 65)]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    value = jnp.where(inside, jnp.maximum(value, 0.0), 0.0)
    return value / jnp.maximum(norm.length(value), 1e-12)


def _pair(norm: Norm, key: Array, window: tuple[Array, Array], side: Array, dtype: Any) -> Array:
    """Two bumps of opposite sign, one above or beside the other, in a square window; length 1."""
    row, column = window
    row, column = (jnp.broadcast_to(one, jnp.broadcast_shapes(row.shape, column.shape)) for one in (row, column))
    turned = jax.random.bernoulli(key)
    row, column = jnp.where(turned, column, row), jnp.where(turned, row, column)
    half = side // 2
    pair = _bump(norm, row, column, half, side, dtype) - _bump(norm, row - half, column, side - half, side, dtype)
    return pair / jnp.maximum(norm.length(pair), 1e-12)


def _bumps(norm: Norm, key: Array, image: Array, epsilon: Array) -> Array:
    """A 5 x 5 grid of bump pairs of random colour signs, of length epsilon."""
    shape, dtype = image.shape, image.dtype
    side = max(min(shape[:2]) // 5, 1)
    top, left = ((size - 5 * side) // 2 for size in shape[:2])
    rows, columns = jnp.arange(shape[0])[:, None] - top, jnp.arange(shape[1])[None, :] - left

    def tile(key: Array, index: Array) -> Array:
        turn, colour = jax.random.split(key)
        window = (rows - index // 5 * side, columns - index % 5 * side)
        return _pair(norm, turn, window, jnp.int32(side), dtype)[..., None] * _signs(colour, shape[-1:], dtype)

    total = jax.vmap(tile)(jax.random.split(key, 25), jnp.arange(25)).sum(0)
    return epsilon * total / jnp.maximum(norm.length(total), 1e-12)


def _move_bump(norm: Norm, key: Array, perturbation: Array, epsilon: Array, side: Array) -> Array:
    """Turns one window's perturbation towards a bump pair, with what length another window and the ball leave it."""
    one, two, turn, colour = jax.random.split(key, 4)
    shape, power = perturbation.shape, 1 if norm is L1 else 2
    channels = shape[-1]
    side = jnp.maximum(side, 3)
    side = jnp.minimum(side + (side % 2 == 0), min(shape[:2]) - (min(shape[:2]) + 1) % 2)
    here, there = _window(one, shape, side), _window(two, shape, side)
    mask, other = _inside(here, side), _inside(there, side)
    old = jnp.where(mask, perturbation, 0.0)
    both = norm.length(jnp.where(mask | other, perturbation, 0.0))
    spare = jnp.maximum(epsilon**power - norm.length(perturbation) ** power, 0.0) / channels
    pair = _pair(norm, turn, here, side, old.dtype)[..., None] * _signs(colour, (channels,), old.dtype)
    new = pair + old / jnp.maximum(norm.length(old), 1e-12)
    by_channel = jnp.sum(jnp.abs(new) ** power, axis=(0, 1)) ** (1 / power)
    new = new / jnp.maximum(by_channel, 1e-12) * (spare + both**power / channels) ** (1 / power)
    changed = jnp.where(mask, new, jnp.where(other, 0.0, perturbation))
    return epsilon * changed / jnp.maximum(norm.length(changed), 1e-12)
