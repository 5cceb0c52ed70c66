"""Rendered shapes: images whose manifold is known exactly, since a differentiable renderer makes them.

An image is a soft-edged shape (its class) on a shaded ground. Its code holds where the shape is, how large, turned and
stretched it is, how bright and how shaded shape and ground are, and how soft the edge is. The image manifold of a class
is what the renderer makes of all codes, its tangent space at an image the renderer's Jacobian at the image's code.
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from robgrad.data.images import DataError, Dataset, Split, Truth

CLASSES = ("disc", "ring", "square", "triangle", "cross", "star", "crescent")
# Components of a code: the geometry's, two slopes each of ground and shape, a texture's, then levels by channel.
GEOMETRY = ("right", "down", "size", "angle", "stretch", "softness")
SLOPES = ("ground_right", "ground_down", "shape_right", "shape_down")
TEXTURE = ("frequency", "direction", "phase", "contrast")
TRAIN, TEST = 6000, 1000
_NAME = re.compile(r"shapes(?:-(\d+)(?:x([13]))?)?(-textured)?(-small)?")


class Canvas(NamedTuple):
    """What is drawn: `side` x `side` pixels, grey or colour; whether on a texture; whether shapes are 0.7 as large."""

    side: int = 28
    channels: int = 1
    textured: bool = False
    small: bool = False

    @property
    def dimensions(self) -> int:
        """Length of a code, the dimension of the manifold."""
        return len(GEOMETRY) + len(SLOPES) + (len(TEXTURE) if self.textured else 0) + 2 * self.channels


def canvas_of(name: str) -> Canvas | None:
    """The canvas of a data set's name, None for another name.

    `shapes` (28x28, grey), `shapes-16`, `shapes-32x3`, each also followed by `-textured`, `-small` or both.

    Raises:
      DataError: if the side is not in 16..64.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    canvas = Canvas(int(match[1] or 28), int(match[2] or 1), bool(match[3]), bool(match[4]))
    if not 16 <= canvas.side <= 64:
        raise DataError(f"{name}: expected a side of 16 to 64 pixels, got {canvas.side}")
    return canvas


def _polygon(corners: np.ndarray) -> Callable[[Array, Array], Array]:
    """Signed distance to a polygon `[corners, 2]`, negative inside."""

    def distance(x: Array, y: Array) -> Array:
        point = jnp.stack([x, y], axis=-1)[..., None, :]
        start, along = jnp.asarray(corners), jnp.asarray(np.roll(corners, -1, axis=0) - corners)
        offset = point - start
        share = jnp.clip(jnp.sum(offset * along, -1) / jnp.sum(along**2, -1), 0, 1)
        nearest = jnp.sum((offset - share[..., None] * along) ** 2, -1).min(-1)
        # Inside, the number of edges to the right of the point is odd.
        above, next_above = offset[..., 1] >= 0, point[..., 1] >= start[:, 1] + along[:, 1]
        right = offset[..., 0] * along[:, 1] < offset[..., 1] * along[:, 0]
        right = jnp.where(along[:, 1] > 0, right, ~right)
        inside = jnp.sum((above != next_above) & right, -1) % 2 == 1
        return jnp.where(inside, -1.0, 1.0) * jnp.sqrt(nearest + 1e-12)

    return distance


def _regular(corners: int, inner: float | None = None) -> np.ndarray:
    """Corners of a regular polygon of radius 1, one up; with an inner radius, of a star."""
    count = corners if inner is None else 2 * corners
    angles = -math.pi / 2 + 2 * math.pi * np.arange(count) / count
    radii = np.ones(count) if inner is None else np.where(np.arange(count) % 2, inner, 1.0)
    return (radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)


def _length(x: Array, y: Array) -> Array:
    return jnp.sqrt(x**2 + y**2 + 1e-12)


_ARM = 0.32
_CROSS = np.array(
    [
        *((-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)),
        *((_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)),
    ],
    np.float32,
)
# Signed distances of the classes, in units of the shape's size.
DISTANCES: tuple[Callable[[Array, Array], Array], ...] = (
    lambda x, y: _length(x, y) - 0.9,
    lambda x, y: jnp.abs(_length(x, y) - 0.75) - 0.2,
    _polygon(0.8 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32)),
    _polygon(1.1 * _regular(3)),
    _polygon(_CROSS),
    _polygon(1.1 * _regular(5, 0.45)),
    lambda x, y: jnp.maximum(_length(x, y) - 0.95, 0.75 - _length(x - 0.45, y)),
)


def render(canvas: Canvas, label: Array | int, code: Array) -> Array:
    """The image `[side, side, channels]` in [-1, 1] of a class and a code `[dimensions]` in [-1, 1].

    Coordinates of pixels' centres run from -1 to 1, to the right and down. With the shape's signed distance d in its
    own frame and the edge's width w, the shape covers sigmoid(-d / w) of a pixel. A texture is a wave over the ground.
    """
    cover, across, down = _cover(canvas, label, code)
    slopes = 0.1 * code[len(GEOMETRY) : len(GEOMETRY) + len(SLOPES)]
    ground, shape = jnp.split(code[canvas.dimensions - 2 * canvas.channels :], 2)
    shade = lambda right, below: (right * across + below * down)[..., None]  # noqa: E731
    # With a texture the ground's level varies less, so that all stays in the pixel range.
    ground = -0.55 + (0.05 if canvas.textured else 0.25) * ground + shade(slopes[0], slopes[1])
    if canvas.textured:
        ground = ground + _wave(code[len(GEOMETRY) + len(SLOPES) :][: len(TEXTURE)], across, down)[..., None]
    shape = 0.55 + 0.25 * shape + shade(slopes[2], slopes[3])
    return ground + cover[..., None] * (shape - ground)


def _wave(texture: Array, across: Array, down: Array) -> Array:
    """A texture's wave `[side, side]`, of at most 0.2."""
    frequency, direction, phase, contrast = texture
    cosine, sine = jnp.cos(jnp.pi / 2 * direction), jnp.sin(jnp.pi / 2 * direction)
    along = cosine * across + sine * down
    return 0.1 * (1 + contrast) * jnp.sin((7 + 2 * frequency) * along + jnp.pi * phase)


def mask(canvas: Canvas, label: Array | int, code: Array) -> Array:
    """Which pixels `[side, side]` the shape covers by more than half."""
    return _cover(canvas, label, code)[0] > 0.5


def _cover(canvas: Canvas, label: Array | int, code: Array) -> tuple[Array, Array, Array]:
    """The share of each pixel that the shape covers, and the pixels' coordinates."""
    centres = (2 * jnp.arange(canvas.side) + 1) / canvas.side - 1
    down, across = jnp.meshgrid(centres, centres, indexing="ij")
    right, below, size, angle, stretch, softness = code[: len(GEOMETRY)]
    # A small shape has the more room to be in.
    reach, whole = (0.45, 0.7) if canvas.small else (0.3, 1.0)
    x, y = across - reach * right, down - reach * below
    cosine, sine = jnp.cos(0.6 * angle), jnp.sin(0.6 * angle)
    scale, wide = whole * (0.5 + 0.12 * size), jnp.exp(0.15 * stretch)
    x, y = (cosine * x + sine * y) / (scale * wide), (cosine * y - sine * x) / (scale / wide)
    edge = 0.5 * (2 / canvas.side) * jnp.exp(0.4 * softness) / scale
    distance = lax.switch(label, [partial(one, x, y) for one in DISTANCES])
    return jax.nn.sigmoid(-distance / edge), across, down


@lru_cache
def shapes(name: str) -> Dataset:
    """The data set of a name that `canvas_of` knows: float32 images in [-1, 1], as exact as that is.

    6,000 training and 1,000 test images, classes in equal shares, codes uniform in their box; always the same.
    """
    canvas = canvas_of(name)
    assert canvas is not None
    codes = _codes(canvas)
    truth = Truth(partial(render, canvas), codes[:TRAIN], codes[TRAIN:], 1.0, partial(mask, canvas))
    return Dataset(name, CLASSES, _drawn(canvas, codes[:TRAIN]), _drawn(canvas, codes[TRAIN:]), truth)


def first_test_images(name: str, count: int) -> np.ndarray:
    """The first test images of a set, where the other thousands need not be drawn."""
    canvas = canvas_of(name)
    assert canvas is not None
    return _drawn(canvas, _codes(canvas)[TRAIN : TRAIN + count]).images


def _codes(canvas: Canvas) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (TRAIN + TEST, canvas.dimensions)).astype(np.float32)


def _drawn(canvas: Canvas, codes: np.ndarray) -> Split:
    draw = jax.jit(lambda labels, codes: lax.map(lambda one: render(canvas, *one), (labels, codes), batch_size=100))
    labels = (np.arange(len(codes)) % len(CLASSES)).astype(np.int32)
    return Split(np.asarray(draw(labels, codes)), labels)
