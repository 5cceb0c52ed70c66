"""Norms of perturbations: what an attack needs to know of one, each for one image of any shape.

To add a norm is to write one `Norm` and name it in `NORMS`: attacks, configurations and flags read that.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from robgrad.data.checks import Range, clipped

_NEWTON_STEPS, _HALVINGS = 20, 30


class Norm(NamedTuple):
    """What projected gradient ascent needs to know of a norm, each for one image of any shape.

    Attributes:
      length: the norm of a perturbation.
      random_start: `(key, image, epsilon)` to a perturbation uniform in the ball.
      ascent: gradient to the direction of steepest ascent, of norm 1 (0 where the gradient is 0).
      project: `(perturbation, epsilon)` to the nearest perturbation in the ball, rounded inwards.
      least: `(slopes, room, want)` to how far each pixel moves in the least move that gains `want`, where a pixel's
        move gains its slope times as much and goes no further than its room; all of the room, where that is too little.
    """

    length: Callable[[Array], Array]
    random_start: Callable[[Array, Array, Array], Array]
    ascent: Callable[[Array], Array]
    project: Callable[[Array, Array], Array]
    least: Callable[[Array, Array, Array], Array]


def length(vector: Array) -> Array:
    """Euclidean norm over all axes. Scales first: the squares of a certain network's gradient underflow."""
    largest = jnp.max(jnp.abs(vector))
    return largest * jnp.linalg.norm(jnp.ravel(vector / _nonzero(largest)))


def _nonzero(number: Array) -> Array:
    return jnp.where(number > 0, number, 1.0)


def _l2_random_start(key: Array, image: Array, epsilon: Array) -> Array:
    direction_key, radius_key = jax.random.split(key)
    direction = _l2_ascent(jax.random.normal(direction_key, image.shape, image.dtype))
    return epsilon * jax.random.uniform(radius_key, dtype=image.dtype) ** (1 / image.size) * direction


def _l2_ascent(gradient: Array) -> Array:
    return gradient / _nonzero(length(gradient))


def _l2_project(perturbation: Array, epsilon: Array) -> Array:
    # Inwards by what the length may have been rounded by.
    least = 1 - jnp.finfo(perturbation.dtype).eps / 2 * perturbation.size**0.5
    return perturbation * jnp.minimum(1.0, epsilon * least / _nonzero(length(perturbation)))


def _linf_random_start(key: Array, image: Array, epsilon: Array) -> Array:
    return jax.random.uniform(key, image.shape, image.dtype, -epsilon, epsilon)


def _linf_project(perturbation: Array, epsilon: Array) -> Array:
    return jnp.clip(perturbation, -epsilon, epsilon)


def _linf_length(perturbation: Array) -> Array:
    return jnp.max(jnp.abs(perturbation))


def _linf_pace(slopes: Array) -> Array:
    return (slopes > 0).astype(slopes.dtype)


def _l1_random_start(key: Array, image: Array, epsilon: Array) -> Array:
    # The first coordinates of a point that is uniform on a simplex, with signs.
    sizes_key, signs_key = jax.random.split(key)
    sizes = jax.random.exponential(sizes_key, (image.size + 1,), image.dtype)
    signs = jax.random.rademacher(signs_key, image.shape, image.dtype)
    return epsilon * signs * (sizes[:-1] / jnp.sum(sizes)).reshape(image.shape)


def _l1_ascent(gradient: Array) -> Array:
    # Where several pixels are the steepest, they share.
    sizes = jnp.abs(gradient)
    steepest = (sizes == jnp.max(sizes)) & (sizes > 0)
    return jnp.sign(gradient) * steepest / jnp.maximum(jnp.sum(steepest), 1)


def _l1_length(perturbation: Array) -> Array:
    return jnp.sum(jnp.abs(perturbation))


def _l1_project(perturbation: Array, epsilon: Array) -> Array:
    return l1_project_within(perturbation, jnp.full_like(perturbation, jnp.inf), epsilon)


def l1_project_within(perturbation: Array, room: Array, epsilon: Array) -> Array:
    """The nearest perturbation in the l1 ball whose pixels go no further than their room, rounded inwards.

    It is sign(p_i) min(max(|p_i| - t, 0), room_i), t >= 0 the root of the sum's excess over epsilon (Croce and Hein,
    2021, proposition 2.1): found by bisection, then exactly among the pixels that it moves.

    Args:
      perturbation: `[...]`, p.
      room: of its shape, how far each pixel may go in the direction of its sign; infinity where it is free.
      epsilon: radius.
    """
    sizes = jnp.abs(perturbation)
    kept = lambda threshold: jnp.clip(sizes - threshold, 0.0, room)  # noqa: E731

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        over = jnp.sum(kept(middle)) > epsilon
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    ends = jnp.zeros((), sizes.dtype), jnp.max(sizes)
    low, high = lax.fori_loop(0, _HALVINGS, halve, ends)
    middle = (low + high) / 2
    full = sizes - middle >= room
    moved = (sizes > middle) & ~full
    left = epsilon - jnp.sum(jnp.where(full, room, 0.0))
    threshold = (jnp.sum(jnp.where(moved, sizes, 0.0)) - left) / jnp.maximum(jnp.sum(moved), 1)
    threshold = jnp.where(jnp.sum(kept(0.0)) <= epsilon, 0.0, jnp.clip(threshold, low, high))
    found = kept(threshold)
    # Inwards by what the sum may have been rounded by.
    least = epsilon * (1 - jnp.finfo(sizes.dtype).eps * perturbation.size**0.5)
    return jnp.sign(perturbation) * found * jnp.minimum(1.0, least / _nonzero(jnp.sum(found)))


def l1_within(image: Array, perturbation: Array, epsilon: Array, pixel_range: Range) -> Array:
    """The nearest perturbation of an image in the l1 ball and the pixel range at once; see `l1_project_within`."""
    low, high = (jnp.asarray(bound, image.dtype) for bound in pixel_range)
    room = jnp.where(perturbation > 0, high - image, image - low)
    return l1_project_within(perturbation, jnp.maximum(room, 0.0), epsilon)


def _together(pace: Callable[[Array], Array]) -> Callable[[Array, Array, Array], Array]:
    """`Norm.least` where pixels move at once, each at its pace of the slopes, until its room ends.

    With a_i the slopes, s_i the paces and r_i the room, moves are min(t s_i, r_i), t the root of the concave
    sum_i a_i min(t s_i, r_i) = want, found by Newton's method from 0, which reaches it from below in finitely many
    steps (as many as there are pieces at most; 20 are taken).
    """

    def least(slopes: Array, room: Array, want: Array) -> Array:
        paces = pace(slopes)
        paces = paces / _nonzero(jnp.max(paces))
        farthest = jnp.max(jnp.where(paces > 0, room / _nonzero(paces), 0.0))

        def newton(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            _, time, taken = carry
            free = time * paces < room
            reached = jnp.sum(slopes * jnp.minimum(time * paces, room))
            slope = jnp.sum(jnp.where(free, slopes * paces, 0.0))
            further = jnp.where(slope > 0, time + (want - reached) / _nonzero(slope), farthest)
            return time, jnp.clip(further, time, farthest), taken + 1

        def moving(carry: tuple[Array, Array, Array]) -> Array:
            before, time, taken = carry
            return (time > before) & (taken < _NEWTON_STEPS)

        # Most images need three or four; where the time no longer moves it never will.
        start = (jnp.array(-1.0, want.dtype), jnp.array(0.0, want.dtype), jnp.int32(0))
        time = lax.while_loop(moving, newton, start)[1]
        return jnp.minimum(time * paces, room)

    return least


def _in_turn(slopes: Array, room: Array, want: Array) -> Array:
    """`Norm.least` in l1: the steepest pixel goes as far as it can, then the next."""
    order = jnp.argsort(-jnp.ravel(slopes))
    steep, free = jnp.ravel(slopes)[order], jnp.ravel(room)[order]
    gains = steep * free
    before = jnp.cumsum(gains) - gains
    moves = jnp.clip((want - before) / _nonzero(steep), 0.0, free) * (steep > 0)
    return jnp.zeros_like(moves).at[order].set(moves).reshape(slopes.shape)


L1 = Norm(_l1_length, _l1_random_start, _l1_ascent, _l1_project, _in_turn)
L2 = Norm(length, _l2_random_start, _l2_ascent, _l2_project, _together(lambda slopes: slopes))
LINF = Norm(_linf_length, _linf_random_start, jnp.sign, _linf_project, _together(_linf_pace))
NORMS: dict[str, Norm] = {"l1": L1, "l2": L2, "linf": LINF}


def ascent(norm: Norm, gradient: Array) -> Array:
    """The norm's direction of steepest ascent; none, 0, where any part of the gradient is not finite."""
    return jnp.where(jnp.all(jnp.isfinite(gradient)), norm.ascent(gradient), 0.0)


def ended(norm: Norm, image: Array, point: Array, epsilon: Array, pixel_range: Range) -> Array:
    """Where an attack ends: the point, brought into ball and pixel range, rounded towards the image.

    A pixel whose sum with the image was rounded outwards goes back by one unit in the last place, so that also in
    double precision none has moved by more than the projected perturbation.
    """
    moved = norm.project(clipped(point, pixel_range) - image, epsilon)
    end = image + moved
    # What the sum has lost, exactly (Knuth's TwoSum).
    seen = end - image
    lost = (image - (end - seen)) + (moved - seen)
    end = jnp.where(lost * jnp.sign(moved) < 0, jnp.nextafter(end, image), end)
    return clipped(end, pixel_range)


def norm_named(norm: Norm | str) -> Norm:
    """A norm, given itself or its name.

    Raises:
      ValueError: if it is the name of none.
    """
    if isinstance(norm, Norm):
        return norm
    if not isinstance(norm, str) or norm not in NORMS:
        raise ValueError(f"expected a norm of {', '.join(NORMS)} or an attacks.Norm, got {norm!r}")
    return NORMS[norm]
