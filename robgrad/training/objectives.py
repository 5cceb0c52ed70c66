"""What training descends, and the step that does so: attack, objective, update, each by itself.

An objective says what becomes of one device's share of a batch; the attack is handed to it, so that standard and
adversarial training, TRADES and whatever comes next differ in a few lines. To add one is to write such a function
and name it in `named.OBJECTIVES`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from robgrad import stacking
from robgrad.attacks import Attack, Loss, cross_entropy
from robgrad.data import scale
from robgrad.networks import Network, Variables, logits_fn, of_module, predicted


class TrainState(NamedTuple):
    """Everything a run continues from: variables, optimizer state, the run's key, steps taken."""

    variables: Any
    opt_state: Any
    key: Array
    step: Array


class StepSizes(NamedTuple):
    """Numbers of a classifier's step; scalars, or `[S]` for a stack. Radii are in units of the pixel range [-1, 1].

    Attributes:
      epsilon, step_size: of the attack.
      learning_rate: of Adam.
      weight: of an objective's second term, for instance TRADES' beta.
    """

    epsilon: Array | float = 0.0
    step_size: Array | float = 0.0
    learning_rate: Array | float = 1e-3
    weight: Array | float = 0.0


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


class Outcome(NamedTuple):
    """What an objective makes of a batch: each example's loss `[B]`, logits `[B, C]` to count hits by, variables.

    The variables are those given, with what the network's training mode has moved.
    """

    losses: Array
    logits: Array
    variables: Variables


class Passes(NamedTuple):
    """What an objective may use of the network as it is before the step.

    Attributes:
      train: `(variables, images)` to logits and moved variables, in training mode; differentiable.
      evaluate: images to logits in evaluation mode; differentiable by the images, not by the variables.
      perturb: `(images, labels)` to attacked images, by the network in evaluation mode, not differentiated.
      batch: what the step was given: the examples with all they carry, and a random key for each.
    """

    train: Callable[[Variables, Array], tuple[Array, Variables]]
    evaluate: Callable[[Array], Array]
    perturb: Callable[[Array, Any], Array]
    batch: Batch


Objective = Callable[[Variables, Passes, Array, Array, StepSizes], Outcome]
Step = Callable[[TrainState, Any, Batch], tuple[TrainState, dict[str, Array]]]


def adversarial(loss: Loss = cross_entropy) -> Objective:
    """The loss of the attacked batch in place of the batch (Madry et al., 2018); with `no_attack` standard training."""

    def objective(variables, passes: Passes, images, labels, numbers):
        logits, variables = passes.train(variables, passes.perturb(images, labels))
        return Outcome(jax.vmap(loss)(logits, labels), logits, variables)

    return objective


def trades() -> Objective:
    """TRADES (Zhang et al., 2019): CE(f(x), y) + beta KL(softmax f(x) || softmax f(x')), beta = `numbers.weight`.

    The attack finds x' by ascending the second term from near x: build it with `attacks.kl_divergence` and
    `random_start`, since its gradient is zero at x itself; it is handed the clean probabilities for a label.
    Hits are counted on the attacked batch.
    """

    def objective(variables, passes: Passes, images, labels, numbers):
        attacked = passes.perturb(images, jax.nn.softmax(passes.evaluate(images)))
        clean, variables = passes.train(variables, images)
        logits, variables = passes.train(variables, attacked)
        # From logarithms, since a probability may round to 0, where x log x has no derivative.
        own, theirs = jax.nn.log_softmax(clean), jax.nn.log_softmax(logits)
        divergence = jnp.sum(jnp.exp(own) * (own - theirs), axis=-1)
        return Outcome(jax.vmap(cross_entropy)(clean, labels) + numbers.weight * divergence, logits, variables)

    return objective


_moments = jax.jit(optax.scale_by_adam().init)


def init_classifier(network: nn.Module | Network, image_shape: Sequence[int], key: Array) -> TrainState:
    """A fresh classifier for images `[H, W, C]`: initial variables and a zeroed Adam."""
    init_key, run_key = jax.random.split(key)
    variables = of_module(network).init(init_key, image_shape)
    return TrainState(variables, _moments(variables["params"]), run_key, jnp.zeros((), jnp.int32))


def classifier_step(network: nn.Module | Network, attack: Attack, objective: Objective | None = None) -> Step:
    """One Adam step on the mean of an objective, by default `adversarial()`.

    The attack sees the variables before the step in evaluation mode, one image at a time. With
    `attacks.no_attack` this is standard training. Metrics: `loss` and `accuracy`, of what the objective counts.
    Needs a mapped axis `stacking.DATA`, over which gradients and metrics are summed.
    """
    network, objective = of_module(network), objective or adversarial()

    def step(state: TrainState, numbers: StepSizes, batch: Batch):
        images, labels = scale(batch.examples.images), batch.examples.labels
        # Of the images' type, where JAX makes float64 of a Python number.
        numbers = StepSizes(*(jnp.asarray(number, images.dtype) for number in numbers))
        share = batch.weights / stacking.summed(batch.weights.sum())
        sizes = jnp.asarray(numbers.epsilon), jnp.asarray(numbers.step_size)

        def perturb(images, labels):
            own = logits_fn(network, state.variables)
            each = jax.vmap(lambda key, image, label: attack(key, own, image, label, *sizes))
            return lax.stop_gradient(each(batch.keys, images, labels))

        passes = Passes(
            lambda variables, images: network.train(variables, images, batch.weights),
            partial(network.evaluate, state.variables),
            perturb,
            batch,
        )

        # On the whole batch, since `vmap` over examples would form one kernel gradient for each.
        def mean_loss(params):
            outcome = objective({**state.variables, "params": params}, passes, images, labels, numbers)
            hits = predicted(outcome.logits) == labels
            # A label beyond the logits would be clamped in silence.
            losses = jnp.where(labels < outcome.logits.shape[-1], outcome.losses, jnp.nan)
            total = jnp.sum(share * losses)
            return total, ({"loss": total, "accuracy": jnp.sum(share * hits)}, outcome.variables)

        params = state.variables["params"]
        gradients, (metrics, moved) = jax.grad(mean_loss, has_aux=True)(params)
        gradients, metrics = stacking.summed((gradients, metrics))
        params, opt_state = adam_update(gradients, state.opt_state, params, numbers.learning_rate)
        variables = typed_as(state.variables, {**moved, "params": params})
        return state._replace(variables=variables, opt_state=opt_state, step=state.step + 1), metrics

    return step


def typed_as(old: Any, new: Any) -> Any:
    """New values of a tree in the old one's types, which with JAX's float64 on a step's statistics may outgrow."""
    return jax.tree.map(lambda before, after: after.astype(before.dtype), old, new)


def adam_update(gradients, opt_state, params, learning_rate: Array | float, b1: float = 0.9, b2: float = 0.999):
    """One step of Adam (Kingma and Ba, 2015) with the learning rate as a number of the replica."""
    directions, opt_state = optax.scale_by_adam(b1, b2).update(gradients, opt_state)
    moved = jax.tree.map(lambda p, d: (p - learning_rate * d).astype(p.dtype), params, directions)
    return moved, opt_state
