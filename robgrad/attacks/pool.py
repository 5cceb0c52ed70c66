"""A batch on the device whose slots are refilled: the work of a search follows the images that still stand.

The batch keeps its shape; after every few steps images that have fallen, or whose search is over, make room for
others that wait.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from robgrad import compiling, stacking
from robgrad.attacks.search import Goal, Search

Apply = Callable[[Any, Array], Array]


class Examples(NamedTuple):
    """Images `[N, H, W, C]`, labels or goals `(labels, targets)`, classes aimed at in each turn `[T, N]`, radii `[N]`,
    and random keys `[T * N]`, turn by turn.
    """

    images: np.ndarray
    labels: Any
    aims: np.ndarray
    radii: np.ndarray
    keys: Array


class Tools(NamedTuple):
    """What is compiled of one search: a first state and some steps of a whole batch."""

    start: Callable
    advance: Callable
    stride: int
    steps: int


def tools_of(apply: Apply, search: Search, wanted: int, mesh: Mesh, lasting: bool = False) -> Tools:
    """Compiles a search, by strides of about so many steps; slots are spread over the mesh's data axis.

    `lasting` is `compiling.compiled`'s: whether it runs far longer than it takes to compile.
    """
    stride = max(one for one in range(1, min(wanted, search.steps) + 1) if search.steps % one == 0)

    def start(variables, key, image, label, target, epsilon):
        return search.start(key, Goal(partial(apply, variables), image, label, epsilon, target))

    def advance(variables, image, label, target, epsilon, state):
        goal = Goal(partial(apply, variables), image, label, epsilon, target)
        state = lax.fori_loop(0, stride, lambda _, state: search.step(goal, state), state)
        return state, search.end(state)

    def spread(function: Callable, axes: Sequence[int | None]) -> Callable:
        specs = tuple(P() if axis is None else P(stacking.DATA) for axis in axes)
        mapped = jax.vmap(function, in_axes=tuple(axes))
        return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=P(stacking.DATA), check_vma=False)

    starts = spread(start, (None, 0, 0, 0, 0, 0))

    def begun(variables, fresh, keys, images, labels, targets, radii, states):
        new = starts(variables, keys, images, labels, targets, radii)
        if states is None:
            return new
        pick = lambda a, b: jnp.where(fresh.reshape(-1, *[1] * (a.ndim - 1)), a, b)  # noqa: E731
        return jax.tree.map(pick, new, states)

    advanced = compiling.compiled(spread(advance, (None, 0, 0, 0, 0, 0)), mesh, lasting=lasting, donate_argnums=5)
    return Tools(compiling.compiled(begun, mesh), advanced, stride, search.steps)


def attack_all(
    tools: Tools, size: int, variables, examples: Examples, since: np.ndarray, told: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Runs one search on images that are all still right, turn by turn: aiming at one class after another, say.

    Turns overlap, so that the batch stays full. An image that falls in one is not attacked in later ones; where it does
    in several, the first counts, so that what is found does not depend on the batch.

    Args:
      tools: of the search.
      size: slots, a multiple of the devices.
      variables: of the network.
      examples: images, their classes aimed at and keys in each turn.
      since: the first turn of each image `[N]`; the number of turns for none.
      told: called with the number of images that stand as each turn begins.

    Returns:
      Points `[N, H, W, C]`, where an image fell or else where its last turn ended; and the turn in which it fell `[N]`,
      the number of turns for none.
    """
    images, labels, aims, radii, keys = examples
    (turns, count), aims = aims.shape, aims.ravel()
    waiting = deque(item for item in range(aims.size) if item // count >= since[item % count])
    found, fell, begun = images.copy(), np.full(count, turns), -1
    slots, taken, states = np.full(size, -1), np.zeros(size, int), None

    def held(items: np.ndarray) -> Any:
        of_images = jax.tree.map(lambda leaf: leaf[items % count], (images, labels, radii))
        return *of_images[:2], aims[items], of_images[2]

    while waiting or (slots >= 0).any():
        free = np.flatnonzero(slots < 0)
        if waiting and (len(free) >= max(1, size // 4) or len(free) == size):
            fresh = free[: len(waiting)]
            slots[fresh], taken[fresh] = [waiting.popleft() for _ in fresh], 0
            if slots.max() // count > begun:
                begun = slots.max() // count
                told(int((fell == turns).sum()))
            items, mask = np.maximum(slots, 0), np.isin(np.arange(size), fresh)
            states = tools.start(variables, mask, keys[items], *held(items), states)
        states, (points, down) = tools.advance(variables, *held(np.maximum(slots, 0)), states)
        taken += tools.stride
        down = np.asarray(down) & (slots >= 0)
        over = down | ((taken >= tools.steps) & (slots >= 0))
        if over.any():
            points = np.asarray(points)
        for slot in np.flatnonzero(over)[np.argsort(slots[over])]:
            turn, row = divmod(slots[slot], count)
            if turn < fell[row] if down[slot] else fell[row] == turns:
                found[row], fell[row] = points[slot], turn if down[slot] else turns
        slots[over] = -1
        if down.any():
            slots[(slots >= 0) & (slots // count > fell[slots % count])] = -1
            waiting = deque(item for item in waiting if item // count < fell[item % count])
    return found, fell
