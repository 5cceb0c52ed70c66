"""Many networks, many examples, many devices: the one place that maps a function over all three.

A *stack* is a pytree whose leaves carry a leading replica axis; a single network is a stack of one.
Devices form one mesh of axes `replica` and `data`: the stack is split over the first, a batch of
examples over the second. What runs inside is written for one replica and its share of the batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

REPLICA, DATA = "replica", "data"


def stack(replicas: Sequence[Any]):
    """Stacks equal pytrees along a new leading replica axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *replicas)


def concatenate(stacks: Sequence[Any]):
    """Joins stacks of equal structure into one."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)


def replica(stacked, index: int):
    """One replica of a stack, without the leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def size(stacked) -> int:
    """Length of the leading axis that all leaves share."""
    return len(jax.tree.leaves(stacked)[0])


def device_mesh(replicas: int, batch: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arranges all devices as a `(replica, data)` mesh for a stack of `replicas` and batches of `batch`.

    The work of the busiest device is ceil(replicas / r) * ceil(batch / d) examples for r * d devices.
    Takes the largest r within a tenth of the least work, since replicas need no communication.
    """
    devices = jax.devices() if devices is None else devices

    def work(r: int) -> int:
        return -(-replicas // r) * -(-batch * r // len(devices))

    divisors = [r for r in range(1, len(devices) + 1) if len(devices) % r == 0]
    least = min(map(work, divisors))
    rows = max(r for r in divisors if work(r) <= 1.1 * least)
    grid = np.asarray(devices).reshape(rows, -1)
    return Mesh(grid, (REPLICA, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def over_replicas(function: Callable) -> Callable:
    """Maps a function of one replica over a stack on one device.

    Batched by `vmap`, except on a CPU: there convolutions with batched kernels are several times
    slower than one network after another, so the replicas of a core run in turn.
    """
    if jax.default_backend() == "cpu":
        return lambda *stacks: lax.map(lambda replicas: function(*replicas), stacks)
    return jax.vmap(function)


def per_replica(function: Callable, mesh: Mesh) -> Callable:
    """Turns `function(replica, shared)` into one of `(stack, shared)`, spread over a mesh, for use under `jit`.

    `shared` is replicated on every device; the stack is padded to the mesh and the padding dropped.
    Inside, the axis `DATA` is bound: the function may split batches by its index and sum over it.
    """

    def local(stacked, shared):
        return over_replicas(lambda one: function(one, shared))(stacked)

    spread = jax.shard_map(local, mesh=mesh, in_specs=(P(REPLICA), P()), out_specs=P(REPLICA), check_vma=False)

    def run(stacked, shared):
        results = spread(_padded(stacked, mesh.shape[REPLICA]), shared)
        return jax.tree.map(lambda leaf: leaf[: size(stacked)], results)

    return run


def per_example(function: Callable, mesh: Mesh, chunk: int = 100) -> Callable:
    """Compiles `function(shared, replica, example)` into one of a whole stack and a whole set of examples.

    Returns `run(shared, stack, examples)`, whose results carry the axes `[replica, example, ...]`.
    Examples are spread over the mesh and taken `chunk` at a time by `vmap`; neither stack nor examples
    need divide the mesh.
    """
    rows, columns = mesh.shape[REPLICA], mesh.shape[DATA]

    def local(shared, stacked, examples):
        def of_replica(one):
            return lax.map(partial(function, shared, one), examples, batch_size=min(chunk, size(examples)))

        return over_replicas(of_replica)(stacked)

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(REPLICA), P(DATA)), out_specs=P(REPLICA, DATA), check_vma=False
    )

    @jax.jit
    def run(shared, stacked, examples):
        results = spread(shared, _padded(stacked, rows), _padded(examples, columns))
        return jax.tree.map(lambda leaf: leaf[: size(stacked), : size(examples)], results)

    return run


def _padded(tree, multiple: int):
    """Repeats the last entry of the leading axis until its length divides by `multiple`."""
    missing = -size(tree) % multiple

    def pad(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    return jax.tree.map(pad, tree)
