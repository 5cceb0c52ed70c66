"""Compiled training of a stack of networks: loops, order, devices, failure; data on the device.

`fit` leaves what a step does to the *step*, a pure function of one replica: `step(state, numbers, batch) -> (state,
metrics)`, such as `objectives.classifier_step` or the VAE-GAN's.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from robgrad import compiling, stacking
from robgrad.attacks.pgd import check_moves
from robgrad.data import Dataset, Split
from robgrad.data.checks import checked_count, checked_split
from robgrad.training import streaming
from robgrad.training.averaging import judged
from robgrad.training.objectives import Batch, Step, StepSizes
from robgrad.training.optimizers import checked_rates, checked_sizes
from robgrad.training.state import TrainState


class Progress(NamedTuple):
    """What `fit` reports after each segment: steps done and wanted, epoch, mean metrics `[S]` of the segment."""

    step: int
    steps: int
    epoch: float
    metrics: dict[str, np.ndarray]

    def __str__(self) -> str:
        """A line: how far it is, and each metric, from its least to its greatest over the stack."""
        epochs = self.epoch * self.steps / self.step
        spans = {name: (np.min(values), np.max(values)) for name, values in self.metrics.items()}
        said = [f"{name} {low:.3g}" + (f" to {high:.3g}" if high > low else "") for name, (low, high) in spans.items()]
        return ", ".join([f"epoch {self.epoch:.1f} of {epochs:.0f}", *said])


class Checkpoints(NamedTuple):
    """When and how `fit` saves.

    Attributes:
      save: called with the states, whose buffers it must copy.
      minutes: save at the first end of a segment this long after the last.
      steps: save whenever the step divides by this; 0 for never.
    """

    save: Callable[[TrainState], None]
    minutes: float = 10.0
    steps: int = 0


class StoppedError(RuntimeError):
    """Training was asked to stop, and has saved if it could."""


class DivergedError(RuntimeError):
    """The loss of a network stopped being finite; its message names it and says what to try."""


def fit(
    step: Step,
    states: TrainState,
    numbers,
    data,
    *,
    mesh: Mesh | None = None,
    batch_size: int,
    epochs: int,
    shuffle: bool = True,
    shard_data: bool = False,
    names: Sequence[str] = (),
    progress: Callable[[Progress], None] = lambda done: None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
    score: Callable[[Any], np.ndarray] | None = None,
) -> TrainState:
    """Trains a stack in compiled segments of steps until each replica has seen `epochs` epochs.

    The data lie on the device; each epoch draws its permutation there from the replica's key and the
    epoch's number, so that the result depends on no segment. A last batch that is not full is left out. Data that
    memory does not hold are read block by block, and give the same result to the bit.

    Args:
      step: the step of one replica.
      states: stack of `S` states, at equal steps; their buffers are given away.
      numbers: pytree of arrays `[S]`, the step's second argument; a scalar is every replica's.
      data: pytree of arrays `[N, ...]`, the data of every replica, for instance a `data.Split`; or what has a length
        and gives one example by its index, for instance a `grain.MapDataset`, which is read while training goes on:
        an example is a `data.Split` of one image and label, a pair of both, or a dict with `image` and `label`.
      mesh: the devices; where None, those of `stacking.device_mesh` for this stack and batch.
      batch_size: examples a step, over all devices.
      epochs: passes over the data in all, those already in `states` included.
      shuffle: a new order each epoch; off, the stored order each time, as the paper had it.
      shard_data: split the data over the mesh's data axis instead of copying it to every device; the
        numbers are the same.
      names: name of each replica, for errors.
      progress: called after each segment, about every 20 seconds, for instance `print`.
      checkpoints: when and how to save; by default never.
      stop: asked after each segment; once true, `fit` saves and raises.
      score: of the stack's variables, or their averages, to a number `[S]`, at the end of each epoch: for instance the
        robust accuracy of images held out, by `accuracies`. States come from `with_best`, and keep the variables of
        the best epoch (Rice et al., 2020) and all scores in `TrainState.best`.

    Returns:
      The trained stack; `kept` takes the variables of the last step, their average, or the best epoch.

    Raises:
      DataError: if the data have images and labels that `data.check` refuses, or are read by index without Grain.
      ValueError: if `batch_size` is not in 1..N or `epochs` is below 1; if a radius, step, rate, decay or weight is
        negative or not finite, the step's schedule is shorter than the training, or `score` comes without states that
        keep their best epoch, or those without it.
      DivergedError: if a replica's loss stops being finite.
      StoppedError: if `stop` said so, in any process.
    """
    if hasattr(data, "images") and hasattr(data, "labels"):
        checked = checked_split(Split(data.images, data.labels), None, "data", as_images=False)
        data = data._replace(images=checked.images, labels=checked.labels)
    if isinstance(data, Dataset):
        raise ValueError("data: expected a split, got a data set of two; give dataset.train")
    streamed = streaming.is_source(data)
    if streamed and shard_data:
        raise ValueError("shard_data: expected data in memory; those that are read by index are not split over devices")
    examples = len(data) if streamed else stacking.size(data)
    checked_count("example in a batch", batch_size)
    if not 1 <= batch_size <= examples:
        raise ValueError(f"expected a batch size in 1..{examples} (the training examples), got {batch_size}")
    checked_count("epoch", epochs)
    per_epoch = examples // batch_size
    _check_numbers(step, states, numbers, epochs * per_epoch, per_epoch, score)
    replicas = _replicas(states, numbers)
    mesh = stacking.device_mesh(replicas, batch_size) if mesh is None else mesh
    numbers = jax.tree.map(lambda leaf: jnp.full(replicas, leaf) if jnp.ndim(leaf) == 0 else leaf, numbers)
    keys = jnp.copy(states.key)
    states, numbers = stacking.everywhere((states, numbers), mesh)
    # Placed as the compiled segment leaves them, or the second segment would compile anew.
    states = stacking.kept(states, mesh)
    still = _statistics(states)
    done, steps, count, saved = int(states.step[0]), epochs * per_epoch, 1, time.monotonic()
    save_steps = checkpoints.steps if checkpoints else 0
    order = "given" if streamed else "shuffled" if shuffle else "stored"
    blocks, read = _blocks(data, keys, mesh, batch_size, steps, shuffle, shard_data, done), streaming.Block(0, done)
    while done < steps:
        read = next(blocks) if done == read.first + read.steps else read
        within = (per_epoch - done % per_epoch, read.first + read.steps - done)
        count = min(count, *within, *([save_steps - done % save_steps] if save_steps else []))
        run = partial(segment(mesh, _pixels(read.table)), step, mesh, (batch_size, examples), order, shard_data)
        began = time.perf_counter()
        states, sums = run(states, numbers, read.table, np.int32(count), read.places, np.int32(read.first))
        metrics = {name: np.asarray(total) / count for name, total in sums.items()}
        seconds = time.perf_counter() - began
        done += count
        _check_finite(metrics, names, done / per_epoch)
        if score is not None and done % per_epoch == 0:
            shown = states.variables if states.average is None else states.average
            metrics |= {"held_out": np.asarray(score(shown))}
            states = stacking.kept(judged(states, metrics["held_out"], done // per_epoch), mesh)
        progress(Progress(done, steps, done / per_epoch, metrics))
        # The count is data to the compiled loop: aim at segments that hide the cost of starting one.
        count = int(np.clip(20.0 * count / seconds, 1, 8 * count))
        due = checkpoints is not None and time.monotonic() - saved > 60 * checkpoints.minutes
        answers = stacking.agree(count, due, stop())
        count, stopping = int(answers[0, 0]), bool(answers[:, 2].any())
        if checkpoints and (answers[0, 1] or stopping or (save_steps and done % save_steps == 0)):
            checkpoints.save(states)
            saved = time.monotonic()
        if stopping:
            raise StoppedError(f"stopped at step {done} of {steps}")
    _note_unmoved(still, _statistics(states))
    return states


def _blocks(
    data: Any,
    keys: Array,
    mesh: Mesh,
    batch_size: int,
    steps: int,
    shuffle: bool,
    shard_data: bool,
    done: int,
) -> Iterator[streaming.Block]:
    """The data on the devices: all of them at once, or, where they are read by index, those of some steps at a time."""
    place = lambda table: jax.tree.map(jnp.asarray, stacking.everywhere(table, mesh))  # noqa: E731
    if not streaming.is_source(data):
        yield streaming.Block(0, steps, stacking.split(data, mesh) if shard_data else place(data))
        return
    for block in streaming.blocks(data, keys, batch_size, steps, shuffle, done):
        yield block._replace(table=place(block.table), places=stacking.everywhere(block.places, mesh))


def _note_unmoved(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    """Warns of statistics that a training has left as they were."""
    if before and all(np.array_equal(before[name], values) for name, values in after.items()):
        warnings.warn(
            f"the network's {', '.join(before)} have not moved in training: if they are statistics of batch norm, its "
            "module was not told that it trains; see networks.of_module for the flags that are understood",
            stacklevel=3,
        )


def _replicas(states: Any, numbers: Any) -> int:
    """How many networks the stack has.

    Raises:
      ValueError: if the states are no stack, or the numbers not those of as many networks.
    """
    if not jnp.ndim(states.step):
        raise ValueError("expected a stack of states, got one state: give stacking.stack([state])")
    count = stacking.size(states)
    wrong = [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(numbers) if jnp.ndim(leaf) and len(leaf) != count]
    if wrong:
        raise ValueError(f"expected numbers, or one for each of {count} networks, got shape {wrong[0]}")
    return count


def _check_numbers(step: Step, states: Any, numbers: Any, steps: int, per_epoch: int, score: Any) -> None:
    """That what a step is given fits together; see `fit`."""
    if isinstance(numbers, StepSizes):
        checked_rates(numbers.learning_rate, numbers.weight_decay)
        checked_sizes(numbers.epsilon, numbers.step_size, numbers.weight)
        check_moves(getattr(step, "attack", None), numbers.epsilon, numbers.step_size)
    elif hasattr(numbers, "learning_rate"):
        checked_rates(numbers.learning_rate, None)
    planned = getattr(step, "schedule_steps", None)
    if planned is not None and planned < steps:
        raise ValueError(
            f"expected a schedule for the {steps} steps of this training, got one for {planned}; build the optimizer "
            f"with steps={steps}"
        )
    best = getattr(states, "best", None)
    if best is not None and best.curve.shape[-1] * per_epoch < steps:
        raise ValueError(
            f"expected states that keep the best of {steps // per_epoch} epochs or more, got {best.curve.shape[-1]}: "
            "give training.with_best the epochs of the whole training"
        )
    if (best is None) != (score is None):
        needed = "score=" if score is None else "states from training.with_best"
        raise ValueError(f"expected {needed}: to keep the best epoch takes both a score and states that hold it")


def _statistics(states: Any) -> dict[str, np.ndarray]:
    """What training moves beside the parameters, by collection: floating-point values that this process holds."""
    variables = getattr(states, "variables", None)
    if not isinstance(variables, Mapping) or "params" not in variables or jax.process_count() > 1:
        return {}
    found = {}
    for name, values in variables.items():
        leaves = [leaf for leaf in jax.tree.leaves(values) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if name != "params" and leaves:
            found[name] = np.concatenate([np.ravel(leaf) for leaf in leaves])
    return found


def _pixels(data) -> int:
    """Pixels of the largest image among the data's leaves, 0 where there are none."""
    return max((math.prod(leaf.shape[1:3]) for leaf in jax.tree.leaves(data) if jnp.ndim(leaf) == 4), default=0)


@cache
def segment(mesh: Mesh, pixels: int) -> jax.stages.Wrapped:
    """`_segment` compiled for a mesh and images of so many pixels: the loop of all that `fit` does."""
    lasting = pixels > compiling.LARGE
    return compiling.compiled(_segment, mesh, pixels=pixels, lasting=lasting, static_argnums=range(5), donate_argnums=5)


def _segment(
    step: Step,
    mesh: Mesh,
    sizes: tuple[int, int],
    order: str,
    shard_data: bool,
    states,
    numbers,
    data,
    count,
    places=None,
    first=0,
):
    """Takes `count` steps, all within one epoch; returns the stack and its summed metrics.

    The order is `shuffled`, `stored`, or `given` by `places` `[S, ...]` in the data, from the step `first` on.
    """
    batch_size, examples = sizes
    per_epoch = examples // batch_size

    def gather(data, rows: Array) -> Any:
        """Rows of the data; where each device holds a part, each gives what it has and all get the whole."""
        if not shard_data:
            return jax.tree.map(lambda leaf: leaf[rows], data)
        held = stacking.size(data)
        here = rows - lax.axis_index(stacking.DATA) * held

        def pick(leaf: Array) -> Array:
            mine = ((here >= 0) & (here < held)).reshape(-1, *[1] * (leaf.ndim - 1))
            return stacking.summed(jnp.where(mine, leaf[jnp.clip(here, 0, held - 1)], 0))

        return jax.tree.map(pick, data)

    def of_replica(replica, shared):
        (state, numbers, given), (data, count, first) = replica, shared
        rows_of = jnp.arange(examples) if given is None else given
        if order == "shuffled":
            rows_of = jax.random.permutation(jax.random.fold_in(state.key, state.step // per_epoch), examples)

        def take(state: TrainState) -> Batch:
            share = -(-batch_size // lax.axis_size(stacking.DATA))
            positions = lax.axis_index(stacking.DATA) * share + jnp.arange(share)
            every = jnp.arange(share * lax.axis_size(stacking.DATA)) if shard_data else positions
            at = state.step % per_epoch if given is None else state.step - first
            rows = rows_of[at * batch_size + jnp.minimum(every, batch_size - 1)]
            chosen = gather(data, rows)
            if shard_data:
                chosen = jax.tree.map(lambda leaf: leaf[positions], chosen)
            keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(state.key, ~state.step)))(positions)
            weights = (positions < batch_size).astype(jnp.float32)
            return Batch(chosen, weights, keys)

        def body(_, carry):
            state, sums = carry
            state, metrics = step(state, numbers, take(state))
            return state, jax.tree.map(jnp.add, sums, metrics)

        metrics = jax.eval_shape(lambda: step(state, numbers, take(state))[1])
        sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)
        return lax.fori_loop(0, count, body, (state, sums))

    specs = (P(stacking.DATA) if shard_data else P(), P(), P())
    states, sums = stacking.per_replica(of_replica, mesh, specs)((states, numbers, places), (data, count, first))
    return stacking.kept(states, mesh), sums


def _check_finite(metrics: dict[str, np.ndarray], names: Sequence[str], epoch: float) -> None:
    for metric, values in metrics.items():
        for index in map(int, np.flatnonzero(~np.isfinite(values))):
            name = names[index] if index < len(names) else f"network {index}"
            raise DivergedError(
                f"{name}: {metric} became {values[index]} in epoch {int(np.ceil(epoch))}; expected a finite number: "
                "try a smaller learning rate, a smaller epsilon or another seed, and see that the data have finite "
                "pixels, and labels below the network's number of logits"
            )
