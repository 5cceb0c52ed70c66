"""Many networks, many examples, many devices: the one place that maps a function over all three.

A *stack* is a pytree whose leaves carry a leading replica axis; a single network is a stack of one.
Devices form one mesh of axes `replica` and `data`: the stack is split over the first, a batch of
examples over the second. What runs inside is written for one replica and its share of the batch.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from robgrad import compiling

REPLICA, DATA = "replica", "data"
WHOLE = P()
# Operations for each parameter in a pass over a batch from which host devices had better share it (measured).
INTENSE = 350
# Parameters that a processor's cache may hold (16 MB); to read those beyond costs some three times as much (measured).
CACHED = 2**22


# Whole trees at a time: leaf by leaf every shape would compile a program of its own.
_stacked = jax.jit(lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees), inline=True)
_joined = jax.jit(lambda trees: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees), inline=True)
_taken = jax.jit(lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree), inline=True)
_placed = jax.jit(lax.with_sharding_constraint, static_argnums=1, inline=True)


def stack(replicas: Sequence[Any]):
    """Stacks equal pytrees along a new leading replica axis.

    Raises:
      ValueError: if there are none.
    """
    return _stacked(_some(replicas))


def concatenate(stacks: Sequence[Any]):
    """Joins stacks of equal structure into one; where they lie on different devices, on the first.

    Raises:
      ValueError: if there are none.
    """
    stacks = _some(stacks)
    held = [leaf for leaf in jax.tree.leaves(stacks) if isinstance(leaf, Array) and leaf.committed]
    if len({frozenset(leaf.sharding.device_set) for leaf in held}) > 1:
        stacks = jax.device_put(stacks, jax.local_devices()[0])
    return _joined(stacks)


def replica(stacked, index: int):
    """One replica of a stack, without the leading axis.

    Raises:
      ValueError: if there is none at that place.
    """
    return _taken(stacked, _places(stacked, index))


def replicas(stacked, indices: Sequence[int]):
    """Some replicas of a stack, in the order given.

    Raises:
      ValueError: if there is none at one of those places.
    """
    return _taken(stacked, _places(stacked, np.asarray(indices, np.int32 if not len(indices) else None)))


def _some(trees: Sequence[Any]) -> list[Any]:
    found = list(trees)
    if not found:
        raise ValueError("expected one state or more, got none")
    return found


def _places(stacked, places: Any) -> Any:
    """Places in a stack, refused where nothing is: an array of JAX's gives what is nearest."""
    if isinstance(places, jax.core.Tracer):
        return places
    there, wanted = size(stacked), np.asarray(places)
    if not np.issubdtype(wanted.dtype, np.integer) or not np.all((wanted >= -there) & (wanted < there)):
        raise ValueError(f"expected places in a stack of {there}, whole numbers in 0..{there - 1}, got {places}")
    return places


def size(stacked) -> int:
    """Length of the leading axis that all leaves share."""
    return len(jax.tree.leaves(stacked)[0])


def device_mesh(
    replicas: int, batch: int, devices: Sequence[jax.Device] | None = None, *, intensity: float = math.inf
) -> Mesh:
    """Arranges devices as a `(replica, data)` mesh for a stack of `replicas` and batches of `batch`.

    The work of the busiest device is ceil(replicas / r) * ceil(batch / d) examples for r * d devices.
    Takes the largest r within a tenth of the least work, since replicas need no communication.

    Devices that are shares of one processor are a different matter: each can keep all cores busy by itself, and each
    that gets a part of a batch reads all parameters anew. Where a whole batch does too little with each of them, no
    batch is split there, and devices are left out where the stack does not split well.

    Args:
      replicas: of the stack.
      batch: examples a step.
      devices: all of every process where None.
      intensity: operations for each parameter in a pass over one example, see `intensity`.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    divisors = [r for r in range(1, count + 1) if count % r == 0]
    if splits_batches(batch, intensity, devices):
        work = lambda r: -(-replicas // r) * -(-batch * r // count)  # noqa: E731
        rows = max(r for r in divisors if work(r) <= 1.1 * min(map(work, divisors)))
        grid = np.asarray(devices).reshape(rows, -1)
    else:
        rows = max(r for r in divisors if -(-replicas // r) * r <= 1.1 * replicas)
        grid = np.asarray(devices[:rows]).reshape(rows, 1)
    return Mesh(grid, (REPLICA, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def splits_batches(batch: int, intensity: float, devices: Sequence[jax.Device] | None = None) -> bool:
    """Whether `device_mesh` may split batches of so many examples of such an intensity."""
    if batch * intensity >= INTENSE or jax.process_count() > 1:
        return True
    return (jax.devices() if devices is None else devices)[0].platform != "cpu"


def intensity(function: Callable, *arguments) -> float:
    """Floating-point operations for each parameter in one call, counted by the compiler; nothing is run.

    Parameters are arrays that the function holds, and all arguments but the last, which is the example; those beyond
    `CACHED` count three times, since each device reads them from memory. Operations are counted before the compiler
    optimises, of a loop one turn. Arguments may be `jax.ShapeDtypeStruct`.
    """
    held = jax.make_jaxpr(function)(*arguments).consts
    parameters = sum(np.size(leaf) for leaf in jax.tree.leaves((held, arguments[:-1])))
    operations = (jax.jit(function).lower(*arguments).cost_analysis() or {}).get("flops", 0.0)
    return operations / max(parameters + 2 * max(parameters - CACHED, 0), 1)


def everywhere(tree, mesh: Mesh):
    """Places values that all processes hold on all devices of the mesh.

    With one process, only those that lie elsewhere, where another mesh has left them, or nowhere in particular: for
    these XLA would choose, and it may choose what JAX cannot say.
    """
    if jax.process_count() == 1:
        return jax.tree.map(partial(_moved, mesh), tree)

    def place(leaf):
        if isinstance(leaf, Array) and not leaf.is_fully_addressable:
            return leaf
        if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, NamedSharding(mesh, P()), lambda index: values[index])

    return jax.tree.map(place, tree)


def _moved(mesh: Mesh, leaf):
    if isinstance(leaf, Array) and leaf.committed:
        there = leaf.sharding.device_set == {*mesh.devices.flat}
    else:
        there = mesh.size == 1
    return leaf if there else jax.device_put(leaf, NamedSharding(mesh, P()))


def kept(stacked, mesh: Mesh):
    """A stack where it lives between programs: split over the replica axis if it divides, else whole on every device.

    A program whose results are kept so can be called with them again without compiling anew. For use within
    programs and outside; with several processes `everywhere` has placed it already.
    """
    if jax.process_count() > 1:
        return stacked
    spec = P(REPLICA) if size(stacked) % mesh.shape[REPLICA] == 0 else P()
    return _placed(stacked, NamedSharding(mesh, spec))


def summed(tree):
    """Sums over the devices that share a batch, along the mapped axis `DATA`; one device alone has its sum already."""
    return lax.psum(tree, DATA) if lax.axis_size(DATA) > 1 else tree


def split(tree, mesh: Mesh):
    """Splits the leading axis over the mesh's data axis, padded to divide; each device is given its part alone."""
    columns = mesh.shape[DATA]

    def place(leaf) -> Array:
        values = np.asarray(leaf)
        values = np.concatenate([values, np.repeat(values[-1:], -len(values) % columns, axis=0)])
        return jax.make_array_from_callback(values.shape, NamedSharding(mesh, P(DATA)), lambda index: values[index])

    return jax.tree.map(place, tree)


def agree(*numbers: float) -> np.ndarray:
    """The numbers of every process `[processes, numbers]`, so that decisions by the clock are the same in all."""
    mine = np.array(numbers, np.float32)
    return mine[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(mine))


def over_replicas(function: Callable) -> Callable:
    """Maps a function of one replica over a stack on one device.

    Batched by `vmap`, except on a CPU: there convolutions with batched kernels are several times
    slower than one network after another, so the replicas of a core run in turn.
    """
    if jax.default_backend() == "cpu":
        return lambda *stacks: _one_after_another(function, stacks)
    return jax.vmap(function)


def _one_after_another(function: Callable, stacks: Sequence[Any]):
    if size(stacks) == 1:
        # A loop would copy the replica into its body, and its result out of it.
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), function(*(replica(one, 0) for one in stacks)))
    return lax.map(lambda replicas: function(*replicas), stacks)


def per_replica(function: Callable, mesh: Mesh, shared_specs: Any = WHOLE) -> Callable:
    """Turns `function(replica, shared)` into one of `(stack, shared)`, spread over a mesh, for use under `jit`.

    `shared` is replicated on every device, or split as `shared_specs` says; the stack is padded to the mesh
    and the padding dropped. Results are whole in every process. Inside, the axis `DATA` is bound: the
    function may split batches by its index and sum over it.
    """

    def local(stacked, shared):
        return over_replicas(lambda one: function(one, shared))(stacked)

    spread = jax.shard_map(local, mesh=mesh, in_specs=(P(REPLICA), shared_specs), out_specs=P(REPLICA), check_vma=False)

    def run(stacked, shared):
        results = _whole(spread(padded(stacked, mesh.shape[REPLICA]), shared), mesh)
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

    def run(shared, stacked, examples):
        results = _whole(spread(shared, padded(stacked, rows), padded(examples, columns)), mesh)
        return jax.tree.map(lambda leaf: leaf[: size(stacked), : size(examples)], results)

    program = compiling.compiled(run, mesh)
    return lambda *arguments: program(*everywhere(arguments, mesh))


def _whole(tree, mesh: Mesh):
    """Gathers results where other processes hold a part of them."""
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, P())) if jax.process_count() > 1 else tree


def padded(tree, multiple: int):
    """Repeats the last entry of the leading axis until its length divides by `multiple`."""
    missing = -size(tree) % multiple

    def pad(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf

    return jax.tree.map(pad, tree)
