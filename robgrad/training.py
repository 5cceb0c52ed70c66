"""Standard and adversarial training of a stack of networks by one step, compiled loops, data on the device.

`fit` knows loops, data and devices and leaves the rest to a *step*, a pure function of one replica:
`step(state, numbers, batch) -> (state, metrics)`. `classifier_step` is the step of the paper's
classifiers; the VAE-GAN has its own.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from robgrad import models, stacking
from robgrad.attacks import Attack
from robgrad.datasets import Split, scale
from robgrad.losses import Loss, cross_entropy


class TrainState(NamedTuple):
    """Everything a run continues from: parameters, optimizer state, the run's key, steps taken."""

    params: Any
    opt_state: Any
    key: Array
    step: Array


class Numbers(NamedTuple):
    """Numbers of a classifier's step; scalars, or `[S]` for a stack. Radii are in units of the pixel range [-1, 1]."""

    epsilon: Array | float = 0.0
    step_size: Array | float = 0.0
    learning_rate: Array | float = 1e-3


class Batch(NamedTuple):
    """One device's share of a batch.

    Attributes:
      examples: the data's rows, as given to `fit`.
      weights: 1 for each example, 0 for padding; they sum to the batch size over the data axis.
      keys: a random key for each example, the same however the batch is split.
    """

    examples: Any
    weights: Array
    keys: Array


Step = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]


class Progress(NamedTuple):
    """What `fit` reports after each segment: steps done and wanted, epoch, mean metrics `[S]` of the segment."""

    step: int
    steps: int
    epoch: float
    metrics: dict[str, np.ndarray]


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


def init_classifier(model: nn.Module, image_shape: Sequence[int], key: Array) -> TrainState:
    """A fresh classifier for images `[H, W, C]`: initial parameters and a zeroed Adam."""
    init_key, run_key = jax.random.split(key)
    params = models.init(model, init_key, image_shape)
    return TrainState(params, optax.scale_by_adam().init(params), run_key, jnp.zeros((), jnp.int32))


def classifier_step(model: nn.Module, attack: Attack, loss: Loss = cross_entropy) -> Step:
    """One Adam step on the mean loss of a batch whose images an attack has replaced (Madry et al., 2018).

    The attack sees the parameters before the step, one image at a time, at the true label. With
    `attacks.no_attack` this is standard training. Metrics: `loss` and `accuracy` on the attacked batch.
    Needs a mapped axis `stacking.DATA`, over which gradients and metrics are summed.
    """

    def step(state: TrainState, numbers: Numbers, batch: Batch):
        images, labels = scale(batch.examples.images), batch.examples.labels
        logits_fn = models.logits_fn(model, state.params)
        perturb = jax.vmap(
            lambda key, image, label: attack(
                key, logits_fn, image, label, jnp.asarray(numbers.epsilon), jnp.asarray(numbers.step_size)
            )
        )
        attacked = lax.stop_gradient(perturb(batch.keys, images, labels))
        share = batch.weights / lax.psum(batch.weights.sum(), stacking.DATA)

        # On the whole batch, since `vmap` over examples would form one kernel gradient for each.
        def mean_loss(params):
            logits = models.logits(model, params, attacked)
            hits = logits.argmax(-1) == labels
            total = jnp.sum(share * jax.vmap(loss)(logits, labels))
            return total, {"loss": total, "accuracy": jnp.sum(share * hits)}

        gradients, metrics = lax.psum(jax.grad(mean_loss, has_aux=True)(state.params), stacking.DATA)
        params, opt_state = adam_update(gradients, state.opt_state, state.params, numbers.learning_rate)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1), metrics

    return step


def adam_update(gradients, opt_state, params, learning_rate: Array | float, b1: float = 0.9, b2: float = 0.999):
    """One step of Adam (Kingma and Ba, 2015) with the learning rate as a number of the replica."""
    directions, opt_state = optax.scale_by_adam(b1, b2).update(gradients, opt_state)
    return optax.apply_updates(params, optax.tree.scale(-learning_rate, directions)), opt_state


def fit(
    step: Step,
    states: TrainState,
    numbers,
    data,
    *,
    mesh: Mesh,
    batch_size: int,
    epochs: int,
    shuffle: bool = True,
    shard_data: bool = False,
    names: Sequence[str] = (),
    report: Callable[[Progress], None] = lambda progress: None,
    checkpoints: Checkpoints | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains a stack in compiled segments of steps until each replica has seen `epochs` epochs.

    The data lie on the device; each epoch draws its permutation there from the replica's key and the
    epoch's number, so that the result depends on no segment. A last batch that is not full is left out.

    Args:
      step: the step of one replica.
      states: stack of `S` states, at equal steps; their buffers are given away.
      numbers: pytree of arrays `[S]`, the step's second argument.
      data: pytree of arrays `[N, ...]`, the data of every replica, for instance a `datasets.Split`.
      mesh: from `stacking.device_mesh`.
      batch_size: examples a step, over all devices.
      epochs: passes over the data in all, those already in `states` included.
      shuffle: a new order each epoch; off, the stored order each time, as the paper had it.
      shard_data: split the data over the mesh's data axis instead of copying it to every device; the
        numbers are the same.
      names: name of each replica, for errors.
      report: called after each segment, about every 20 seconds.
      checkpoints: when and how to save; by default never.
      stop: asked after each segment; once true, `fit` saves and raises.

    Returns:
      The trained stack.

    Raises:
      ValueError: if `batch_size` is not in 1..N or `epochs` is below 1.
      DivergedError: if a replica's loss stops being finite.
      StoppedError: if `stop` said so, in any process.
    """
    examples = stacking.size(data)
    if not 1 <= batch_size <= examples:
        raise ValueError(f"expected a batch size in 1..{examples} (the training examples), got {batch_size}")
    if epochs < 1:
        raise ValueError(f"expected at least 1 epoch, got {epochs}")
    per_epoch = examples // batch_size
    states, numbers = stacking.everywhere((states, numbers), mesh)
    # Placed as the compiled segment leaves them, or the second segment would compile anew.
    states = stacking.kept(states, mesh)
    data = stacking.split(data, mesh) if shard_data else jax.tree.map(jnp.asarray, stacking.everywhere(data, mesh))
    done, steps, count, saved = int(states.step[0]), epochs * per_epoch, 1, time.monotonic()
    save_steps = checkpoints.steps if checkpoints else 0
    run = partial(_segment, step, mesh, (batch_size, examples), shuffle, shard_data)
    while done < steps:
        count = min(count, per_epoch - done % per_epoch, *([save_steps - done % save_steps] if save_steps else []))
        began = time.perf_counter()
        states, sums = run(states, numbers, data, np.int32(count))
        metrics = {name: np.asarray(total) / count for name, total in sums.items()}
        seconds = time.perf_counter() - began
        done += count
        _check_finite(metrics, names, done / per_epoch)
        report(Progress(done, steps, done / per_epoch, metrics))
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
    return states


def evaluate(model: nn.Module, attack: Attack, mesh: Mesh, *, chunk: int = 100) -> Callable:
    """Compiles the predictions of a stack of networks under attack.

    Returns `run(params, split, key, epsilon, step_size)` to labels `[S, N]`, the class that each network
    predicts for each image after an attack on that network at the true label. Epsilon and step size are
    scalars in pixel units, and new ones compile nothing. With `attacks.no_attack`, clean predictions.
    """

    def predict(numbers, params, example):
        key, (image, label) = example
        logits_fn = models.logits_fn(model, params)
        return jnp.argmax(logits_fn(attack(key, logits_fn, scale(image), label, *numbers)))

    run = stacking.per_example(predict, mesh, chunk)

    def on_split(params, split: Split, key: Array, epsilon: float = 0.0, step_size: float = 0.0) -> Array:
        keys = jax.random.split(key, len(split.labels))
        return run((jnp.float32(epsilon), jnp.float32(step_size)), params, (keys, split))

    return on_split


def accuracies(model: nn.Module, attack: Attack, mesh: Mesh, chunk: int = 100) -> Callable[..., np.ndarray]:
    """`evaluate` as accuracies: `run(params, split, key, epsilon, step_size)` to the share of right labels `[S]`."""
    predict = evaluate(model, attack, mesh, chunk=chunk)

    def run(params, split: Split, key: Array, epsilon: float = 0.0, step_size: float = 0.0) -> np.ndarray:
        return np.mean(np.asarray(predict(params, split, key, epsilon, step_size)) == split.labels, axis=1)

    return run


@partial(jax.jit, static_argnums=range(5), donate_argnums=5)
def _segment(
    step: Step, mesh: Mesh, sizes: tuple[int, int], shuffle: bool, shard_data: bool, states, numbers, data, count
):
    """Takes `count` steps, all within one epoch; returns the stack and its summed metrics."""
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
            return lax.psum(jnp.where(mine, leaf[jnp.clip(here, 0, held - 1)], 0), stacking.DATA)

        return jax.tree.map(pick, data)

    def of_replica(replica, shared):
        (state, numbers), (data, count) = replica, shared
        order = jnp.arange(examples)
        if shuffle:
            order = jax.random.permutation(jax.random.fold_in(state.key, state.step // per_epoch), examples)

        def take(state: TrainState) -> Batch:
            share = -(-batch_size // lax.axis_size(stacking.DATA))
            positions = lax.axis_index(stacking.DATA) * share + jnp.arange(share)
            every = jnp.arange(share * lax.axis_size(stacking.DATA)) if shard_data else positions
            rows = order[state.step % per_epoch * batch_size + jnp.minimum(every, batch_size - 1)]
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

    specs = (P(stacking.DATA) if shard_data else P(), P())
    states, sums = stacking.per_replica(of_replica, mesh, specs)((states, numbers), (data, count))
    return stacking.kept(states, mesh), sums


def _check_finite(metrics: dict[str, np.ndarray], names: Sequence[str], epoch: float) -> None:
    for metric, values in metrics.items():
        for index in map(int, np.flatnonzero(~np.isfinite(values))):
            name = names[index] if index < len(names) else f"network {index}"
            raise DivergedError(
                f"{name}: {metric} became {values[index]} in epoch {int(np.ceil(epoch))}; expected a finite number: "
                "try a smaller learning rate, a smaller epsilon or another seed"
            )
